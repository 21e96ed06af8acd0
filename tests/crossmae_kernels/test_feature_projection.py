"""Keys and values of all decoder blocks: what is read, called and kept beyond what every op guarantees."""

import pytest
import torch
from operators import names_of_all_operators

import crossmae_kernels as ck
from crossmae_kernels.testing import Draw
from crossmae_kernels.testing.problem import named
from crossmae_kernels.testing.problems import project_feature_maps

MAPS, BLOCKS, BATCH, TOKENS, WIDTH, OUT = 5, 3, 2, 2, 48, 24


@pytest.fixture
def problem(device):
    return project_feature_maps(Draw(device=device), (BATCH, TOKENS), MAPS, BLOCKS, WIDTH, OUT)


def gradients_of(results, upstream, leaves, **others):
    return torch.autograd.grad(results, [leaf for _, leaf in named(leaves)], upstream, **others)


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def drawn(blocks):
    return [torch.randn_like(block) for block in blocks]


def test_results_are_parts_of_one_product_and_nothing_is_stacked_but_vectors(problem):
    leaves = problem.leaves(torch.float32)
    with names_of_all_operators() as forward:
        blocks = problem.by("triton")(**leaves)
    upstream = drawn(blocks)
    with names_of_all_operators() as backward:
        gradients_of(blocks, upstream, leaves)
    assert forward == [
        "aten::stack",  # biases
        "crossmae_kernels::fold_norms",
        "crossmae_kernels::mix_feature_maps",
        "aten::baddbmm",
    ]
    assert backward == [
        "crossmae_kernels::project_backward",
        "crossmae_kernels::mix_feature_maps_backward",
        "crossmae_kernels::fold_norm_backward",
    ]
    assert len({block.untyped_storage().data_ptr() for block in blocks}) == 1


def test_gradients_of_blocks_are_read_where_they_lie(problem):
    """In whatever layout, and never written."""
    leaves = problem.leaves(torch.float32)
    blocks = problem.by("triton")(**leaves)
    dense = drawn(blocks)
    strided = [
        dense[0].mT.contiguous().mT,
        torch.cat([dense[1]] * 2, -1)[..., :OUT],
        dense[2].repeat(1, 2, 1)[:, :TOKENS],
    ]
    before = [t.clone() for t in strided]
    ours, theirs = (gradients_of(blocks, upstream, leaves, retain_graph=True) for upstream in (strided, dense))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert equal(strided, before)


@pytest.mark.parametrize("used", [(0,), (2,), (0, 1)], ids=str)
def test_blocks_that_nobody_uses_have_gradients_of_zero(problem, used):
    upstream, found = drawn([torch.empty(BATCH, TOKENS, OUT, device=problem.device)] * BLOCKS), {}
    for impl in ("triton", "reference"):
        leaves = problem.leaves(torch.float32)
        blocks = problem.by(impl)(**leaves)
        torch.autograd.backward([blocks[b] for b in used], [upstream[b] for b in used])
        found[impl] = {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in named(leaves)}
    torch.testing.assert_close(found["triton"], found["reference"], rtol=1e-4, atol=1e-5)
    for block in set(range(BLOCKS)) - set(used):
        assert not found["triton"][f"weights[{block}]"].any()


def test_only_mixes_weights_and_what_made_them_are_saved(problem):
    leaves, saved = problem.leaves(torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        blocks = problem.by("triton")(**leaves)
    storages = {t.untyped_storage().data_ptr() for t in saved}
    assert blocks[0].untyped_storage().data_ptr() not in storages
    known = {t.untyped_storage().data_ptr() for _, t in named(leaves)}
    sizes = [t.numel() for t in saved if t.untyped_storage().data_ptr() not in known]
    mixes, weights, statistics = BLOCKS * BATCH * TOKENS * WIDTH, BLOCKS * OUT * WIDTH, BLOCKS * BATCH * TOKENS
    assert set(sizes) <= {mixes, weights, statistics, 0}


def test_wrong_arguments_are_named(problem):
    maps, *norms, weights, biases = problem.arguments.values()
    with pytest.raises(ValueError, match="weights must hold one tensor for each of 3 rows, got 2"):
        ck.project_feature_maps(maps, *norms, weights[:2], biases)
    with pytest.raises(ValueError, match=r"biases\[1\] must have shape \(O\) with O=24, got \(23,\)"):
        ck.project_feature_maps(maps, *norms, weights, [biases[0], biases[1][:-1], biases[2]])
    with pytest.raises(ValueError, match="maps must hold at least one tensor, got none"):
        ck.project_feature_maps([], norms[0][:, :0], *norms[1:], weights, biases)
