"""LayerNorm's affine in the linear layer behind it, against the two applied one after the other."""

import pytest
import torch

from crossmae_kernels.norm_folding import fold_norm

NAMES = ("x", "weight", "bias", "norm_weight", "norm_bias")


@pytest.fixture
def arguments():
    """Rows without their affine, for each of the batched layers, and parameters, some of them None."""

    def make(blocks=(), absent=(), dtype=torch.float64):
        generator = torch.Generator().manual_seed(0)
        shapes = dict(zip(NAMES, [(7, 6), (5, 6), (5,), (6,), (6,)], strict=True))
        return {
            name: torch.randn(*blocks, *shape, generator=generator, dtype=dtype).requires_grad_()
            for name, shape in shapes.items()
            if name not in absent
        }

    return make


def each(weight):
    """Weights of several blocks come one by one."""
    return list(weight) if weight.dim() == 3 else weight


def folded(x, weight, bias=None, norm_weight=None, norm_bias=None):
    weight, bias = fold_norm(each(weight), bias, norm_weight, norm_bias)
    out = x @ weight.mT
    return out if bias is None else out + bias.unsqueeze(-2)


def unfolded(x, weight, bias=None, norm_weight=None, norm_bias=None):
    """One row and one layer at a time."""
    if weight.dim() == 3:
        layers = zip(
            *(t if t is not None else [None] * 3 for t in (x, weight, bias, norm_weight, norm_bias)), strict=True
        )
        return torch.stack([unfolded(*layer) for layer in layers])
    rows = []
    for row in x:
        row = row if norm_weight is None else row * norm_weight
        row = row if norm_bias is None else row + norm_bias
        out = (weight * row).sum(1)
        rows.append(out if bias is None else out + bias)
    return torch.stack(rows)


@pytest.mark.parametrize("blocks", [(), (3,)], ids=["one layer", "a layer for each block"])
@pytest.mark.parametrize("absent", [(), *((name,) for name in NAMES[2:]), NAMES[2:4], NAMES[3:], NAMES[2:]], ids=str)
def test_equals_the_unfolded_form_and_so_do_all_gradients(arguments, blocks, absent):
    leaves = arguments(blocks, absent)
    ours, theirs = folded(**leaves), unfolded(**leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for call in zip(
        *(torch.autograd.grad(out, list(leaves.values()), upstream) for out in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(*call, rtol=1e-12, atol=1e-12)


def test_what_is_not_there_folds_to_nothing(arguments):
    leaves = arguments()
    weight, bias = fold_norm(leaves["weight"], leaves["bias"], None, None)
    assert weight is leaves["weight"]
    assert bias is leaves["bias"]
    assert fold_norm(leaves["weight"], None, leaves["norm_weight"], None)[1] is None


@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16])
def test_master_weights_are_folded_in_float32_under_autocast(arguments, compute):
    _, *leaves = arguments((3,), dtype=torch.float32).values()
    plain = fold_norm(each(leaves[0]), *leaves[1:])
    upstream = [torch.randn_like(t) for t in plain]
    gradients = torch.autograd.grad(plain, leaves, upstream)
    with torch.autocast("cpu", compute):
        found = fold_norm(each(leaves[0]), *leaves[1:])
        again = torch.autograd.grad(found, leaves, upstream)
    for ours, theirs in zip((*found, *again), (*plain, *gradients), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
