"""What is checked: each op on shapes of ViT-B's decoder, small ones on a CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import crossmae_kernels as ck
from crossmae_kernels.check.contenders import attend

EPS = 1e-6

# Queries, keys, head width, rows of the table (0: dense queries).
ATTENTION = ((49, 50, 32, 196), (147, 50, 32, 0), (64, 65, 80, 0), (147, 197, 64, 0), (300, 1025, 32, 1024))


@dataclass(frozen=True)
class Problem:
    """One op and its arguments."""

    op: str
    label: str
    call: Callable[..., Tensor]
    """Called with the tensors by name, and ``impl`` or another ``attention``."""
    tensors: dict[str, Tensor]
    """Differentiable arguments in float64, on the device that is checked."""


def problems(device: torch.device, small: bool) -> list[Problem]:
    """One problem or more for each op."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    def ids(batch: int, count: int, rows: int) -> Tensor:
        return torch.stack([torch.randperm(rows, generator=generator)[:count] for _ in range(batch)]).to(device)

    return [
        *(_attention(random, ids, *shape, small=small) for shape in (ATTENTION[:4] if small else ATTENTION)),
        _mixing(random, small),
        *_projections(random, ids, small),
        _mlp(random, small),
        *_patches(random, ids, small),
    ]


def _attention(random: Any, ids: Any, queries: int, keys: int, head_width: int, table: int, small: bool) -> Problem:
    batch, heads = (1, 2) if small else (4, 8)
    width = heads * head_width
    rows = ids(batch, queries, table) if table else None

    def call(query: Tensor, key: Tensor, value: Tensor, attention: Any = None, **impl: Any) -> Tensor:
        if attention is not None:
            return attend(attention, query, key, value, heads, rows)
        return ck.cross_attention(query, key, value, heads, rows, **impl)

    label = f"{queries} x {keys}, {heads} heads of {head_width}, {'table' if table else 'dense'}"
    query = random(table, width) if table else random(batch, queries, width)
    tensors = {"query": query, "key": random(batch, keys, width), "value": random(batch, keys, width)}
    return Problem("cross_attention", label, call, tensors)


def _mixing(random: Any, small: bool) -> Problem:
    maps, mixes, batch, tokens, width = (5, 2, 1, 10, 96) if small else (13, 12, 4, 50, 768)

    def call(weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, impl: Any, **by_name: Tensor) -> Tensor:
        return ck.mix_feature_maps(list(by_name.values()), weight, norm_weight, norm_bias, EPS, impl=impl)

    tensors = {f"map {index}": random(batch, tokens, width) for index in range(maps)}
    tensors |= {
        "weight": random(mixes, maps), "norm_weight": random(mixes, width), "norm_bias": random(mixes, width)
    }  # fmt: skip
    return Problem("mix_feature_maps", f"{maps} maps to {mixes}, {tokens} x {width}", call, tensors)


def _projections(random: Any, ids: Any, small: bool) -> list[Problem]:
    batch, tokens, inner, outer = (1, 10, 48, 64) if small else (4, 50, 768, 512)
    rows = ids(batch, tokens, 2 * tokens)

    def norm_linear(**arguments: Any) -> Tensor:
        return ck.norm_linear(**arguments, eps=EPS, activation="gelu")

    def linear_residual(**arguments: Any) -> Tensor:
        return ck.linear_residual(**arguments, residual_ids=rows)

    table = {"residual": random(2 * tokens, outer)}
    x, weight = random(batch, tokens, inner), random(outer, inner) / inner**0.5
    norm = {"norm_weight": random(inner), "norm_bias": random(inner)}
    linear = {"x": x, "weight": weight, "bias": random(outer)}
    label = f"{tokens} x {inner} to {outer}"
    return [
        Problem("norm_linear", f"{label}, gelu", norm_linear, linear | norm),
        Problem("linear_residual", label, ck.linear_residual, linear | {"residual": random(batch, tokens, outer)}),
        Problem("linear_residual", f"{label}, table", linear_residual, linear | table),
    ]


def _mlp(random: Any, small: bool) -> Problem:
    batch, tokens, width, hidden = (1, 10, 32, 128) if small else (4, 49, 512, 2048)

    def call(**arguments: Any) -> Tensor:
        return ck.mlp(**arguments, eps=EPS)

    tensors = {
        "x": random(batch, tokens, width),
        "norm_weight": random(width),
        "norm_bias": random(width),
        "fc1_weight": random(hidden, width) / width**0.5,
        "fc1_bias": random(hidden),
        "fc2_weight": random(width, hidden) / hidden**0.5,
        "fc2_bias": random(width),
    }
    return Problem("mlp", f"{tokens} x {width} x {hidden}", call, tensors)


def _patches(random: Any, ids: Any, small: bool) -> list[Problem]:
    batch, size, patch, count = (1, 32, 8, 5) if small else (4, 224, 16, 49)
    chosen = ids(batch, count, (size // patch) ** 2)
    prediction = random(batch, count, 3 * patch * patch)

    def gather(images: Tensor, impl: Any) -> Tensor:
        return ck.gather_patches(images, chosen, patch, impl=impl)

    def loss(prediction: Tensor, impl: Any) -> Tensor:
        return ck.patch_loss(prediction, pixels.to(prediction.dtype), chosen, patch, normalize=True, impl=impl)

    label = f"{count} patches of {patch} x {patch}"
    images = random(batch, 3, size, size)
    # The kernel has no gradient to the images, so they are no argument here; rounded to what every dtype holds.
    pixels = images.bfloat16().half()
    return [
        Problem("gather_patches", label, gather, {"images": images}),
        Problem("patch_loss", f"{label}, normalised", loss, {"prediction": prediction}),
    ]
