"""Keys and values of all decoder blocks: what is read, called and kept beyond what every op guarantees."""

import pytest
import torch
from operators import names_of_all_operators

import crossmae_kernels as ck
from crossmae_kernels.feature_projection import project_keys_and_values
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


def test_each_product_adds_its_bias_and_nothing_is_stacked_but_vectors(problem):
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
        # Biases of a batched product would be written to all results first and read again.
        *["aten::addmm"] * BLOCKS,
    ]
    assert backward == [
        "crossmae_kernels::project_backward",
        "crossmae_kernels::mix_feature_maps_backward",
        "crossmae_kernels::fold_norm_backward",
    ]


def test_keys_and_values_are_parts_of_one_product_without_biases(problem, monkeypatch):
    from crossmae_kernels.feature_projection import kernels

    masks, backward = [], kernels.backward
    monkeypatch.setattr(kernels, "backward", lambda *given: masks.append(given[3]) or backward(*given))
    leaves = problem.leaves(torch.float32)
    with names_of_all_operators() as forward:
        found = project_keys_and_values(**leaves, impl="triton")
    assert forward == [
        "aten::stack",
        "crossmae_kernels::fold_norms",
        "crossmae_kernels::mix_feature_maps",
        "aten::bmm",
    ]
    blocks, of_values = found
    assert len({block.untyped_storage().data_ptr() for block in blocks}) == 1
    torch.autograd.backward([t.sum() for t in (*blocks, of_values)])
    assert [list(mask) for mask in masks] == [[True, True, False]]  # no sums over all of them


def attention_to(blocks, of_values, query):
    """What queries make of keys and values."""
    attended = [ck.cross_attention_kvpacked(query, block, 2, impl="reference") for block in blocks]
    return attended if of_values is None else [a + lacking for a, lacking in zip(attended, of_values, strict=True)]


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_attention_makes_of_keys_and_values_what_it_makes_of_whole_ones(problem, device, impl):
    """In float64 where PyTorch computes, so that what is exactly zero shows as the other's rounding."""
    query = torch.randn(BATCH, 4, OUT // 2, device=device)
    leaves, exact = problem.leaves(torch.float32), problem.leaves(torch.float64)
    blocks, of_values = project_keys_and_values(**leaves, impl=impl)
    assert (of_values is None) == (impl == "reference")
    whole = ck.project_feature_maps(**exact, impl="reference")
    ours, theirs = attention_to(blocks, of_values, query), attention_to(whole, None, query.double())
    upstream = drawn(ours)
    torch.testing.assert_close(ours, [t.float() for t in theirs], rtol=1e-4, atol=1e-5)
    gradients_of_ours = gradients_of(ours, upstream, leaves)
    gradients_of_theirs = gradients_of(theirs, [t.double() for t in upstream], exact)
    torch.testing.assert_close(gradients_of_ours, tuple(t.float() for t in gradients_of_theirs), rtol=1e-3, atol=1e-4)
    for (name, _), gradient in zip(named(leaves), gradients_of_ours, strict=True):
        if name.startswith("biases"):
            keys, values = gradient.split(OUT // 2)
            assert values.any()
            assert not keys.any() or impl == "reference"


def test_keys_and_values_need_weights_of_an_even_number_of_rows(problem):
    maps, *norms, weights, biases = problem.arguments.values()
    odd = [w[1:] for w in weights], [b[1:] for b in biases]
    with pytest.raises(ValueError, match="weights must have rows for 2 vectors of one width, got 23"):
        project_keys_and_values(maps, *norms, *odd)


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
    assert not storages & {block.untyped_storage().data_ptr() for block in blocks}
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
