"""Keys and values of all decoder blocks: against the definition, with and without kernels."""

from functools import partial

import pytest
import torch
from operators import names_of_all_operators
from problems import Problem, Randoms, naive_linear, naive_norm, same
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck

MAPS, BLOCKS, BATCH, TOKENS, WIDTH, OUT = 5, 3, 2, 4, 48, 24


def make_problem(batch=BATCH):
    random = Randoms()
    arguments = {f"map {index}": random(batch, TOKENS, WIDTH) for index in range(MAPS)}
    arguments |= {
        "mixing_weight": random(BLOCKS, MAPS, scale=0.5),
        "norm_weight": random(BLOCKS, WIDTH),
        "norm_bias": random(BLOCKS, WIDTH),
    }
    arguments |= {f"weight {index}": random(OUT, WIDTH, scale=WIDTH**-0.5) for index in range(BLOCKS)}
    arguments |= {f"bias {index}": random(OUT) for index in range(BLOCKS)}
    return Problem(arguments, random(BLOCKS, batch, TOKENS, OUT))


def several(by_name, prefix):
    return [tensor for name, tensor in by_name.items() if name.startswith(prefix)]


def blocks_of(impl, mixing_weight, norm_weight, norm_bias, **by_name):
    maps, weights, biases = (several(by_name, prefix) for prefix in ("map", "weight", "bias"))
    return ck.project_feature_maps(maps, mixing_weight, norm_weight, norm_bias, weights, biases, impl=impl)


def project(impl, **by_name):
    return torch.stack(blocks_of(impl, **by_name))


kernels = partial(project, "triton")


def naive(mixing_weight, norm_weight, norm_bias, **by_name):
    maps, weights, biases = (several(by_name, prefix) for prefix in ("map", "weight", "bias"))
    blocks = []
    for block in range(BLOCKS):
        mix = sum(weight * feature_map for weight, feature_map in zip(mixing_weight[block], maps, strict=True))
        blocks.append(
            naive_linear(naive_norm(mix, norm_weight[block], norm_bias[block], 1e-6), weights[block], biases[block])
        )
    return torch.stack(blocks)


def test_reference_follows_the_definition():
    problem = make_problem()
    found = problem.solve(partial(project, "reference"), "cpu", torch.float64)
    exact = problem.exact(naive, torch.float64)
    assert found.keys() == exact.keys()
    for name, truth in exact.items():
        torch.testing.assert_close(found[name], truth, rtol=1e-12, atol=1e-12)


@pytest.mark.budget
def test_kernels_keep_to_the_budget(place):
    make_problem().judge([kernels], partial(project, "reference"), naive, *place)


@pytest.mark.budget
def test_kernels_keep_to_the_budget_under_autocast(device):
    # The maps stay in float32, as an encoder's residual stream has them.
    problem = make_problem()
    ours, theirs = kernels, partial(project, "reference")
    problem.judge([ours], theirs, naive, device, torch.float32, torch.float16)


def gradients_of(results, upstream, leaves, **others):
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return torch.autograd.grad(results, wanted, upstream, **others)


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_results_are_parts_of_one_product_and_nothing_is_stacked_but_vectors(device):
    problem = make_problem()
    leaves = problem.leaves(device, torch.float32)
    with names_of_all_operators() as forward:
        blocks = blocks_of("triton", **leaves)
    upstream = [t.clone() for t in problem.upstream.to(device)]
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


def test_gradients_of_blocks_are_read_where_they_lie(device):
    """In whatever layout, and never written; a second backward pass is the first."""
    problem = make_problem()
    leaves = problem.leaves(device, torch.float32)
    blocks = blocks_of("triton", **leaves)
    dense = list(problem.upstream.to(device))
    expected = gradients_of(blocks, dense, leaves, retain_graph=True)
    strided = [
        dense[0].mT.contiguous().mT,
        torch.cat([dense[1]] * 2, -1)[..., :OUT],
        dense[2].repeat(1, 2, 1)[:, :TOKENS],
    ]
    before = [t.clone() for t in strided]
    for upstream in (strided, dense):
        for ours, theirs in zip(gradients_of(blocks, upstream, leaves, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert equal(strided, before)
    assert equal(gradients_of(blocks, dense, leaves, retain_graph=True), expected)
    ones = [torch.ones(1, 1, 1, device=device).expand_as(block) for block in blocks]
    expanded, contiguous = (
        gradients_of(blocks, upstream, leaves, retain_graph=True) for upstream in (ones, [t.contiguous() for t in ones])
    )
    for ours, theirs in zip(expanded, contiguous, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("used", [(0,), (2,), (0, 1)], ids=str)
def test_blocks_that_nobody_uses_have_gradients_of_zero(device, used):
    problem = make_problem()
    found = {}
    for impl in ("triton", "reference"):
        leaves = problem.leaves(device, torch.float32)
        blocks = blocks_of(impl, **leaves)
        torch.autograd.backward([blocks[b] for b in used], [problem.upstream[b].to(device) for b in used])
        found[impl] = {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in leaves.items()}
    for name, ours in found["triton"].items():
        torch.testing.assert_close(ours, found["reference"][name], rtol=1e-4, atol=1e-5)
    for block in set(range(BLOCKS)) - set(used):
        assert not found["triton"][f"weight {block}"].any()


FROZEN = {
    "encoder": [f"map {index}" for index in range(MAPS)],
    "one projection": ["weight 1", "bias 1"],
    "all projections": [f"{kind} {block}" for kind in ("weight", "bias") for block in range(BLOCKS)],
    "mixes": [*(f"map {index}" for index in range(MAPS)), "mixing_weight"],
    "norms": ["norm_weight", "norm_bias"],
    "all but a bias": [*make_problem().arguments.keys() - {"bias 2"}],
}


@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_frozen_arguments_get_no_gradient_and_change_no_other(device, frozen):
    problem = make_problem()
    everything = problem.solve(kernels, device, torch.float32)
    some = problem.solve(kernels, device, torch.float32, frozen=frozen)
    assert set(some) == set(everything) - {f"d {name}" for name in frozen}
    assert all(torch.equal(some[name], everything[name]) for name in some)


def test_repeats_checkpointing_and_compilation_change_nothing(device):
    problem = make_problem()
    plain = problem.solve(kernels, device, torch.float16)
    torch._dynamo.reset()
    backend = "aot_eager" if device == "cpu" else "inductor"
    calls = (
        kernels,
        lambda **arguments: checkpoint(kernels, use_reentrant=False, **arguments),
        torch.compile(kernels, backend=backend, fullgraph=True),
    )
    for call in calls:
        assert same(problem.solve(call, device, torch.float16), plain)


def test_other_batches_compile_once_more(device):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    compiled = torch.compile(kernels, backend=counter, fullgraph=True)
    for batch in (2, 3, 5):
        problem = make_problem(batch)
        assert same(*(problem.solve(call, device, torch.float32) for call in (compiled, kernels)))
    # The first size as such, the second as any size.
    assert counter.frame_count == 2


def test_an_empty_batch(device):
    problem = make_problem(0)
    found = problem.solve(kernels, device, torch.float32)
    assert found["out"].shape == (BLOCKS, 0, TOKENS, OUT)
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, True)], ids=str)
def test_opcheck(device, wanted):
    random = Randoms()
    gradients = [random(BATCH, TOKENS, OUT).to(device) for _ in range(BLOCKS)]
    x, weight = random(BLOCKS, BATCH, TOKENS, WIDTH).to(device), random(BLOCKS, OUT, WIDTH).to(device)
    operator = torch.ops.crossmae_kernels.project_backward
    assert set(torch.library.opcheck(operator, (x, weight, gradients, wanted)).values()) == {"SUCCESS"}


def test_only_mixes_weights_and_what_made_them_are_saved(device):
    leaves = make_problem().leaves(device, torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        blocks = blocks_of("triton", **leaves)
    storages = {t.untyped_storage().data_ptr() for t in saved}
    assert blocks[0].untyped_storage().data_ptr() not in storages
    known = {t.untyped_storage().data_ptr() for t in leaves.values()}
    sizes = [t.numel() for t in saved if t.untyped_storage().data_ptr() not in known]
    mixes, weights, statistics = BLOCKS * BATCH * TOKENS * WIDTH, BLOCKS * OUT * WIDTH, BLOCKS * BATCH * TOKENS
    assert set(sizes) <= {mixes, weights, statistics, 0}


def test_second_derivatives_are_refused(device):
    leaves = make_problem().leaves(device, torch.float32)
    out = kernels(**leaves)
    (gradient,) = torch.autograd.grad(out.square().sum(), leaves["weight 0"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_wrong_arguments_are_named():
    problem = make_problem().arguments
    norms = [problem["mixing_weight"], problem["norm_weight"], problem["norm_bias"]]
    maps, weights, biases = (several(problem, prefix) for prefix in ("map", "weight", "bias"))
    with pytest.raises(ValueError, match="weights must hold one tensor for each of 3 rows, got 2"):
        ck.project_feature_maps(maps, *norms, weights[:2], biases)
    with pytest.raises(ValueError, match=r"biases\[1\] must have shape \(O\) with O=24, got \(23,\)"):
        ck.project_feature_maps(maps, *norms, weights, [biases[0], biases[1][:-1], biases[2]])
    with pytest.raises(ValueError, match="maps must hold at least one tensor, got none"):
        ck.project_feature_maps([], norms[0][:, :0], *norms[1:], weights, biases)
