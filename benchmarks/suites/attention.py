"""Attention of the decoder, its gather of queries included, against everything that a user would pick."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import crossmae_kernels as ck
from benchmarks.contest import Contest, Form, MissingError, Solver, Work
from benchmarks.suites.ops import op_contest
from benchmarks.suites.shapes import model_name, shape_of
from crossmae_kernels.check.contenders import Attention, attend, attentions
from crossmae_kernels.testing import Draw, Problem, problems


def attention(form: Form) -> list[Contest]:
    """Decoder blocks, the first with a table of queries; in the full form self-attention and larger images too."""
    found = []
    for size in form.sizes:
        config, keys, queries = shape_of(form, size)
        shape = (queries, keys, config.decoder_heads, config.decoder_width // config.decoder_heads)
        for batch in form.batches:
            found += [_attention(form, size, batch, *shape, table=table) for table in (0, config.patches)]
            if form.full:
                larger, more_keys, more_queries = shape_of(form, size, 448)
                encoder = (keys, keys, config.encoder_heads, config.encoder_width // config.encoder_heads)
                mae = (config.patches + 1, config.patches + 1, *shape[2:])
                found += [
                    _attention(form, size, batch, more_queries, more_keys, *shape[2:], table=larger.patches),
                    _attention(form, size, batch, *encoder, table=0),
                    _attention(form, size, batch, *mae, table=0),
                ]
    return found


def _attention(
    form: Form, size: str, batch: int, queries: int, keys: int, heads: int, head_width: int, table: int
) -> Contest:
    width = heads * head_width

    def pose(draw: Draw, batch: int) -> Problem:
        posed = problems.cross_attention(draw, batch, queries, keys, heads, head_width, table)
        # Keys and values lie side by side, as the joint projection leaves them.
        key, value = draw.normal(batch, keys, 2 * width).chunk(2, dim=-1)
        return posed.having(key=key, value=value)

    def solver(build: Callable[[], Attention]) -> Solver:
        return Solver(partial(attend, build(), num_heads=heads))

    others = {name: partial(solver, partial(_as_it_is, attention)) for name, attention in attentions().items()}
    others["FlexAttention"] = partial(solver, partial(_flex, form.device))
    size_of, asked = form.dtype.itemsize, batch * queries * width
    query_bytes = (table * width if table else asked) * size_of
    key_value_bytes = 2 * batch * keys * width * size_of
    read = query_bytes + key_value_bytes + (batch * queries * 8 if table else 0)
    flops = 4.0 * batch * queries * keys * width
    return op_contest(
        "attention",
        form,
        {
            "model": model_name(size),
            "problem": f"{queries} x {keys}, {heads} heads of {head_width}",
            "queries": "table" if table else "dense",
        },
        batch,
        pose,
        partial(ck.cross_attention, num_heads=heads),
        forward=Work(read + asked * size_of, flops),
        # Scores are needed again, so five products where forward has two.
        backward=Work(read + asked * size_of + query_bytes + key_value_bytes, 2.5 * flops),
        others=others,
    )


def _as_it_is(attention: Attention) -> Attention:
    return attention


def _flex(device: torch.device) -> Attention:
    if device.type != "cuda":
        raise MissingError("is compiled for GPUs; on a CPU it has no backward pass")
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    attention: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        return attention(query, key, value).transpose(1, 2)

    return attend
