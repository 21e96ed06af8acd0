"""The fold's kernels: error budget with all gradients, what is read and kept, bytes, mutations."""

import functools

import pytest
import seeds
import torch
from contract import same
from mutation import broken
from operators import names_of_all_operators
from oracles import oracle_of
from places import in_float32_and_bfloat16

import crossmae_kernels as ck
from crossmae_kernels.testing import Draw, Judge, solve
from crossmae_kernels.testing.problems import fold_norm

NAMES = ("bias", "norm_weight", "norm_bias")


def posed(shape, device="cpu", seed=0, **options):
    """A weight of that shape, or a stack of several."""
    *blocks, outer, inner = shape
    return fold_norm(Draw(seed, device), outer, inner, *blocks, **options)


def judge(problem, dtype):
    return Judge(problem, dtype, oracle_of(problem)).check(problem.by("triton"))


@pytest.mark.budget
@pytest.mark.parametrize(
    ("shape", "absent"),
    [
        ((130, 70), ()),
        ((64, 96), ("bias",)),
        ((20, 32), ("norm_weight",)),
        ((33, 7), ("norm_bias",)),
        ((65, 40), ("bias", "norm_bias")),
        ((35, 9), ("bias", "norm_weight")),
        ((35, 9), ("norm_weight", "norm_bias")),
        ((3, 24, 48), ()),
        ((2, 67, 65), ("norm_weight",)),
        ((2, 20, 9), ("bias", "norm_weight", "norm_bias")),
        ((40, 1100), ()),
        ((1, 1), ()),
    ],
    ids=str,
)
def test_results_and_all_gradients_keep_to_the_budget(place, shape, absent):
    device, dtype = place
    judge(posed(shape, device, seeds.seeded(), absent=absent), dtype)


@pytest.mark.budget
def test_results_in_16_bits_of_parameters_in_float32(device):
    for dtype in (torch.float16, torch.bfloat16):
        problem = posed((2, 70, 40), device, seeds.seeded(), dtype=dtype)
        found = judge(problem, torch.float32)
        assert found["out[0]"].dtype == found["out[1]"].dtype == dtype


def test_autocast_rounds_nothing(device):
    problem = posed((20, 32), device)
    plain, cast = (solve(problem, problem.by("triton"), torch.float32, autocast=to) for to in (None, torch.float16))
    assert same(plain, cast)


def test_norms_of_another_dtype_than_the_weight_get_gradients_of_their_own(device):
    problem = posed((20, 32), device).rounded(torch.float16)
    leaves = problem.leaves(torch.float32)
    mixed = leaves | {name: t for name, t in problem.leaves(torch.float16, ("bias",)).items() if name in NAMES}
    with torch.autocast(device, torch.float16):
        results = problem.by("triton")(**mixed)
    assert all(torch.equal(*pair) for pair in zip(results, problem.by("triton")(**leaves), strict=True))
    for name, t in mixed.items():
        if t.requires_grad:
            (gradient,) = torch.autograd.grad(sum(each.sum() for each in results), t, retain_graph=True)
            assert gradient.dtype == t.dtype, name


@pytest.mark.parametrize("trained", ["bias", "norm_bias"])
@pytest.mark.parametrize("shape", [(20, 32), (3, 20, 32)])
def test_a_shift_trained_alone_asks_for_no_gradient_of_the_weight(device, trained, shape):
    problem = posed(shape, device)
    leaves = problem.leaves(torch.float32, frozen=set(problem.differentiable) - {trained})
    folded, bias = problem.by("triton")(**leaves)
    assert not folded.requires_grad
    assert bias.requires_grad
    assert torch.autograd.grad(bias.sum(), leaves[trained])[0].abs().sum() > 0


def test_weights_of_several_blocks_are_neither_stacked_nor_their_gradients_copied(device):
    problem = posed((3, 20, 32), device)
    leaves = problem.leaves(torch.float32, frozen=("weight[1]",))
    with names_of_all_operators() as names:
        folded, bias = problem.by("triton")(**leaves)
        torch.autograd.backward([folded, bias], [torch.ones_like(folded), torch.ones_like(bias)])
    assert "aten::stack" not in names
    assert "aten::cat" not in names
    first, second, third = (weight.grad for weight in leaves["weight"])
    assert second is None
    assert first.untyped_storage().data_ptr() == third.untyped_storage().data_ptr()


def test_weights_that_lie_apart_or_otherwise_than_the_first(device):
    problem = posed((3, 20, 32), device)

    def scattered(weight, **vectors):
        first, second, third = weight
        weights = [first.clone(), second.t().contiguous().t(), torch.cat([third, third], 1)[:, :32]]
        return problem.by("triton")(weights, **vectors)

    assert same(*(solve(problem, call, torch.float32) for call in (scattered, problem.by("triton"))))


def test_one_result_alone_has_gradients(device):
    problem = posed((20, 32), device)
    leaves = problem.leaves(torch.float32)
    for index, by in enumerate(("norm_weight", "norm_bias")):
        out, twin = (problem.by(impl)(**leaves)[index] for impl in ("triton", "reference"))
        torch.testing.assert_close(out, twin)
        wanted = [leaves["weight"], leaves[by]]
        for ours, theirs in zip(*(torch.autograd.grad(t.sum(), wanted) for t in (out, twin)), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 32), (3, 0, 32), (3, 20, 0)], ids=str)
def test_empty_matrices(device, shape):
    problem = posed(shape, device)
    assert same(*(solve(problem, problem.by(impl), torch.float32) for impl in ("triton", "reference")))


def test_nothing_to_fold_is_a_cast(device):
    leaves = posed((5, 6), device).leaves(torch.float32)
    weight, bias = ck.fold_norm(leaves["weight"], leaves["bias"], None, None, impl="triton")
    assert weight is leaves["weight"]
    assert bias is leaves["bias"]
    weight, bias = ck.fold_norm(leaves["weight"], None, None, None, torch.float16, impl="triton")
    assert torch.equal(weight, leaves["weight"].half())
    assert bias is None


def test_matrices_and_rows_beyond_2_to_the_31_are_found(device):
    """The memory between them is reserved but never touched."""
    problem = posed((2, 3, 16), device)
    leaves = problem.leaves(torch.float16, frozen=("weight[0]", "weight[1]"))
    memory = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    for strides in ((2**31, 16, 1), (16, 2**30, 1)):
        weight = memory.as_strided((2, 3, 16), strides).copy_(torch.stack(leaves["weight"]))
        near, far = (problem.by("triton")(**leaves | {"weight": list(w)}) for w in (leaves["weight"], weight))
        assert all(torch.equal(*pair) for pair in zip(near, far, strict=True))
        gradients = (torch.autograd.grad(out[0].sum(), leaves["norm_weight"])[0] for out in (near, far))
        assert torch.equal(*gradients)


def test_wrong_arguments():
    weight = torch.randn(5, 6)
    with pytest.raises(ValueError, match=r"bias must have shape.*O=5.*norm_weight must have shape.*I=6"):
        ck.fold_norm([weight, weight], torch.randn(2, 4), torch.randn(2, 5), None)
    with pytest.raises(ValueError, match=r"norm_bias must have shape \(2, I\) with I=6, got \(6,\)"):
        ck.fold_norm([weight, weight], None, None, torch.randn(6))
    with pytest.raises(ValueError, match=r"weight\[1\] must have shape \(O, I\) with O=5, I=6, got \(6, 5\)"):
        ck.fold_norm([weight, weight.mT], None, None, None)
    with pytest.raises(ValueError, match="weight must hold at least one tensor, got none"):
        ck.fold_norm([], None, None, None)
    with pytest.raises(TypeError, match=r"weight must be a tensor of shape .*, got NoneType"):
        ck.fold_norm(None, None, None, None)
    with (
        pytest.raises(ValueError, match=r"tensors of one dtype, got torch.float16 and torch.float32"),
        torch.autocast("cpu"),
    ):
        ck.fold_norm([weight, weight.half()], None, None, None)
    with pytest.raises(TypeError, match=r"dtype must be floating point .*, got torch.int8"):
        ck.fold_norm(weight, None, None, None, torch.int8)
    with pytest.raises(
        RuntimeError, match=r"kernels support float32, float16, bfloat16, but these tensors are torch.float64"
    ):
        ck.fold_norm(weight.double(), None, None, None, impl="triton")


def test_only_parameters_are_saved(device):
    problem = posed((20, 32), device, dtype=torch.float16)
    leaves, saved = problem.leaves(torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        problem.by("triton")(**leaves)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for name, t in leaves.items() if name != "bias"}


def test_each_matrix_is_read_and_written_once(interpreter):
    from crossmae_kernels.audit.traffic import count_traffic

    stack, outer, inner = 2, 256, 192
    problem = posed((stack, outer, inner), dtype=torch.float16)
    weights, *vectors = problem.leaves(torch.float32).values()
    with count_traffic() as forward:
        out = problem.by("triton")(weights, *vectors)
    with count_traffic() as backward:
        torch.autograd.grad(out, [*weights, *vectors], [torch.randn_like(t) for t in out])
    elements, outputs = stack * outer * inner, stack * outer
    # Both norms are read again by every tile of 16 rows, from caches.
    assert forward.loaded == 4 * (elements + outputs) + outputs // 16 * 2 * 4 * inner
    assert forward.stored == 2 * (elements + outputs)
    # Two sums for every tile of 64 rows, and the norms again; each tile of 64 columns reads the bias's gradient.
    assert backward.stored == 4 * elements + outputs // 64 * 2 * 4 * inner
    assert backward.loaded == 6 * elements + outputs // 64 * 2 * 4 * inner + inner // 64 * 2 * outputs
    assert backward.bytes <= 1.05 * 10 * elements


# What shows it, what is replaced and by what.
MUTATIONS = {
    "the scale left out": ("tall", "tile *= vector(scale", "tile += 0.0 * vector(scale"),
    "the bias left out": ("tall", "total += vector(bias +", "total += 0.0 * vector(bias +"),
    "norms of the first matrix": ("tall", "vector(shift + matrix * WIDTH", "vector(shift + 0 * matrix * WIDTH"),
    "the last block of columns alone": ("wide", "total += tl.sum(tile", "total = tl.sum(tile"),
    "sums of the first tile": ("tall", "sums = tl.program_id(0)", "sums = 0 * tl.program_id(0)"),
    "a part of a gradient": ("tall", "gradient += bias_gradient", "gradient += 0.0 * bias_gradient"),
}

# More rows or more columns than a program takes at a time.
SHAPES = {"tall": (2, 66, 70), "wide": (1, 5, 1030)}


@functools.cache
def judge_of(seed, shape, device, dtype):
    problem = posed(SHAPES[shape], device, seed)
    return Judge(problem, dtype, oracle_of(problem))


@pytest.mark.budget
@in_float32_and_bfloat16
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(place, tmp_path, mutation):
    shape, *change = MUTATIONS[mutation]
    judge = judge_of(seeds.seeded(), shape, *place)
    with (
        broken("crossmae_kernels.primitives.norm_folding", tmp_path, *change),
        pytest.raises(AssertionError, match="errs by"),
    ):
        judge.check(judge.problem.by("triton"))


@pytest.mark.budget
@in_float32_and_bfloat16
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_that_are_broken_pass_whole(place, shape):
    judge = judge_of(seeds.seeded(), shape, *place)
    judge.check(judge.problem.by("triton"))
