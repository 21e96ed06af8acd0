"""Problems for cross-attention, and an oracle that shares nothing with the reference."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from seeds import generator
from torch import Tensor

import crossmae_kernels as ck
from crossmae_kernels.testing import assert_within_budget, budgets, poisoned_allocations


def naive_attention(query, key, value, num_heads, query_ids=None, scale=None):
    """The definition, head by head, in whatever dtype comes."""
    if query_ids is not None:
        query = torch.stack([torch.stack([query[i] for i in image]) for image in query_ids.tolist()])
    width = key.shape[-1] // num_heads
    scale = 1 / width**0.5 if scale is None else scale
    heads = []
    for head in range(num_heads):
        at = slice(head * width, (head + 1) * width)
        scores = scale * torch.einsum("bqd,bkd->bqk", query[..., at], key[..., at])
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(torch.einsum("bqk,bkd->bqd", weights, value[..., at]))
    return torch.cat(heads, -1)


@dataclass
class Problem:
    """Random arguments and a random upstream gradient; ``table`` rows, or 0 for dense queries."""

    queries: int
    keys: int
    heads: int
    head_width: int
    table: int = 0
    batch: int = 2
    ids_dtype: torch.dtype = torch.int64
    scale: float | None = None
    seed: int = 0
    query: Tensor = field(init=False)
    key: Tensor = field(init=False)
    value: Tensor = field(init=False)
    ids: Tensor | None = field(init=False)
    upstream: Tensor = field(init=False)

    def __post_init__(self):
        draw = generator(self.seed)
        width = self.heads * self.head_width

        def random(*shape):
            # Rounded to float16, so that every dtype under test gets the same numbers.
            return torch.randn(*shape, generator=draw).half()

        self.query = random(*((self.table,) if self.table else (self.batch, self.queries)), width)
        self.key, self.value = random(self.batch, self.keys, width), random(self.batch, self.keys, width)
        self.upstream = random(self.batch, self.queries, width)
        self.ids = None
        if self.table:
            # More queries than rows, so some repeat; another choice for every image.
            self.ids = torch.randint(self.table, (self.batch, self.queries), generator=draw, dtype=self.ids_dtype)

    def arguments(self, device, dtype):
        """Query, key and value as leaves."""
        tensors = (self.query, self.key, self.value)
        return tuple(t.to(device, dtype).requires_grad_() for t in tensors)

    def solve(self, attention, device, dtype):
        """Output and the gradients of query, key and value."""
        inputs = self.arguments(device, dtype)
        out = attention(*inputs, self.heads, None if self.ids is None else self.ids.to(device), self.scale)
        return [out.detach(), *torch.autograd.grad(out, inputs, self.upstream.to(device, dtype))]

    def exact(self, dtype=torch.float16):
        """The oracle's answer in float64, for arguments rounded to ``dtype``."""

        def rounded(*tensors):
            return [t.to(dtype).double() for t in tensors]

        query, key, value, upstream = rounded(self.query, self.key, self.value, self.upstream)
        inputs = [t.requires_grad_() for t in (query, key, value)]
        out = naive_attention(*inputs, self.heads, self.ids, self.scale)
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]

    def judge(self, attention, device, dtype):
        """Output and gradients of ``attention`` within the budget, with fresh allocations poisoned."""
        self.judged(device, dtype)(attention)

    def judged(self, device, dtype):
        """What ``judge`` does with ``attention``."""

        def named(results):
            return dict(zip(RESULTS, results, strict=True))

        exact, rounded = named(self.exact(dtype)), copy.copy(self)
        for name in ("query", "key", "value", "upstream"):
            setattr(rounded, name, getattr(self, name).to(dtype))
        allowed = budgets(lambda: named(rounded.solve(_reference, device, dtype)), exact)

        def check(attention):
            with poisoned_allocations():
                found = named(self.solve(attention, device, dtype))
            assert_within_budget(found, exact, allowed)

        return check

    def fused(self, device, dtype):
        """What the kernels make of it."""
        return self.solve(_triton, device, dtype)


RESULTS = ("out", "d query", "d key", "d value")


def _reference(*arguments):
    return ck.cross_attention(*arguments, impl="reference")


def _triton(*arguments):
    return ck.cross_attention(*arguments, impl="triton")


@pytest.fixture
def problem():
    """Make a problem."""
    return Problem


@pytest.fixture
def oracle():
    """Attention written out."""
    return naive_attention


@pytest.fixture
def kernels():
    """Attention by the kernels."""
    return _triton
