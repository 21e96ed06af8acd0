"""The order in which a library adds up products decides nothing."""

import pytest
import torch
from oracles import oracle_of
from seeds import seeded

from crossmae_kernels.testing import Draw, Judge
from crossmae_kernels.testing.problems import cross_attention

numpy = pytest.importorskip("numpy")


@pytest.mark.budget
@pytest.mark.parametrize("keys", [50, 130])
def test_scores_found_again_in_another_order_keep_to_the_budget(interpreter, monkeypatch, keys):
    """Products of queries and keys in the backward pass need not equal the forward pass's bit by bit."""
    generator = numpy.random.default_rng(seeded())
    multiply = numpy.matmul

    def in_any_order(a, b, **options):
        order = generator.permutation(a.shape[-1])
        return multiply(a[..., order], b[..., order, :], **options)

    problem = cross_attention(Draw(seeded(), "cpu"), 2, 49, keys, 1, 32)
    large = problem.having(**{name: 10 * problem.arguments[name] for name in ("query", "key")})
    judge = Judge(large, torch.float32, oracle_of(large))
    monkeypatch.setattr(numpy, "matmul", in_any_order)
    judge.check(large.by("triton"))
