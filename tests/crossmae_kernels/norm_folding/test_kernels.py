"""The fold's kernels: error budget with all gradients, layouts, what PyTorch asks of operators, bytes, mutations."""

import functools
from functools import partial

import pytest
import seeds
import torch
from mutation import broken
from operators import names_of_all_operators
from problems import Problem, Randoms, same
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck

NAMES = ("bias", "norm_weight", "norm_bias")


def make_problem(shape, absent=()):
    """Weight of that shape, and vectors except ``absent`` ones; weight and bias of the result as one row of outputs."""
    random = Randoms()
    *stack, outer, inner = shape
    sizes = {"weight": shape, "bias": (*stack, outer), "norm_weight": (*stack, inner), "norm_bias": (*stack, inner)}
    arguments = {name: None if name in absent else random(*size) for name, size in sizes.items()}
    return Problem(arguments, random(*stack, outer, inner + 1))


def joined(weight, bias):
    bias = torch.zeros_like(weight[..., 0]) if bias is None else bias
    return torch.cat([weight, bias.unsqueeze(-1)], -1)


def fold_norm(impl, weight, dtype=None, **vectors):
    """A stack of weights is taken apart, as parameters of several blocks come."""
    weights = list(weight) if weight.dim() == 3 else weight
    return ck.fold_norm(weights, **vectors, dtype=dtype, impl=impl)


def fold(impl, dtype=None, **arguments):
    return joined(*fold_norm(impl, dtype=dtype, **arguments))


kernels = partial(fold, "triton")


def definition(weight, bias, norm_weight, norm_bias):
    """What the layer makes of the norm's shift alone, and of each unit vector times the norm's scale."""
    inner = weight.shape[-1]
    units = torch.eye(inner, dtype=weight.dtype)
    units = units if norm_weight is None else units * norm_weight.unsqueeze(-2)
    folded = torch.einsum("...oi,...ui->...ou", weight, units.expand(*weight.shape[:-2], inner, inner))
    if norm_bias is not None:
        shift = torch.einsum("...oi,...i->...o", weight, norm_bias)
        bias = shift if bias is None else bias + shift
    return joined(folded, bias)


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
        ((4, 67, 65), ("norm_weight",)),
        ((40, 1100), ()),
        ((1, 1), ()),
    ],
    ids=str,
)
def test_results_and_all_gradients_keep_to_the_budget(place, shape, absent):
    make_problem(shape, absent).judge([kernels], partial(fold, "reference"), definition, *place)


@pytest.mark.budget
def test_results_in_16_bits_of_parameters_in_float32(device):
    for dtype in (torch.float16, *([torch.bfloat16] if device == "cuda" else [])):
        ours, theirs = (partial(fold, impl, dtype) for impl in ("triton", "reference"))
        found = make_problem((2, 70, 40)).judge([ours], theirs, definition, device, torch.float32)
        assert found["out"].dtype == dtype


def test_autocast_rounds_nothing_forward_or_backward(device):
    task = make_problem((20, 32))
    plain = task.solve(kernels, device, torch.float32)
    leaves = task.leaves(device, torch.float32)
    with torch.autocast(device, torch.float16):
        out = kernels(**leaves)
        gradients = torch.autograd.grad(out, list(leaves.values()), task.upstream.to(device))
    assert torch.equal(out, plain["out"])
    for name, gradient in zip(leaves, gradients, strict=True):
        assert torch.equal(gradient, plain[f"d {name}"])


def test_norms_of_another_dtype_than_the_weight_get_gradients_of_their_own(device):
    leaves = make_problem((20, 32)).leaves(device, torch.float32)
    halves = {name: t.detach().half().requires_grad_(name != "bias") for name, t in leaves.items() if name in NAMES}
    with torch.autocast(device, torch.float16):
        out = kernels(**leaves | halves)
    assert torch.equal(out, kernels(**leaves))
    for name, t in (leaves | halves).items():
        if t.requires_grad:
            (gradient,) = torch.autograd.grad(out.sum(), t, retain_graph=True)
            assert gradient.dtype == t.dtype, name


def test_results_repeat_bitwise(device):
    task = make_problem((2, 150, 90))
    assert same(*(task.solve(kernels, device, torch.float16) for _ in range(2)))


def test_a_second_backward_equals_the_first_and_arguments_stay_as_they_are(device):
    task = make_problem((20, 32))
    leaves = task.leaves(device, torch.float32)
    before = [t.detach().clone() for t in leaves.values()]
    out, upstream = kernels(**leaves), task.upstream.to(device)
    first, second = (torch.autograd.grad(out, list(leaves.values()), upstream, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a.detach(), b) for a, b in zip(leaves.values(), before, strict=True))


@pytest.mark.parametrize("wanted", [("weight",), *((name,) for name in NAMES), ("weight", "norm_bias"), NAMES], ids=str)
def test_frozen_arguments_get_no_gradient_and_change_no_other(device, wanted):
    task = make_problem((3, 20, 32))
    everything = task.solve(kernels, device, torch.float32)
    some = task.solve(kernels, device, torch.float32, frozen={"weight", *NAMES} - set(wanted))
    assert set(some) == {"out", *(f"d {name}" for name in wanted)}
    assert all(torch.equal(some[name], everything[name]) for name in some)


@pytest.mark.parametrize("wanted", ["bias", "norm_bias"])
@pytest.mark.parametrize("shape", [(20, 32), (3, 20, 32)])
def test_a_shift_trained_alone_asks_for_no_gradient_of_the_weight(device, wanted, shape):
    leaves = make_problem(shape).leaves(device, torch.float32, frozen={"weight", *NAMES} - {wanted})
    folded, bias = fold_norm("triton", **leaves)
    assert not folded.requires_grad
    assert bias.requires_grad
    assert torch.autograd.grad(bias.sum(), leaves[wanted])[0].abs().sum() > 0


def test_weights_of_several_blocks_are_neither_stacked_nor_their_gradients_copied(device):
    task = make_problem((3, 20, 32))
    leaves, upstream = task.leaves(device, torch.float32), task.upstream.to(device)
    weights = [t.detach().requires_grad_(place != 1) for place, t in enumerate(leaves.pop("weight"))]
    with names_of_all_operators() as names:
        folded, bias = ck.fold_norm(weights, **leaves, impl="triton")
        torch.autograd.backward([folded, bias], [upstream[..., :-1], upstream[..., -1]])
    assert "aten::stack" not in names
    assert "aten::cat" not in names
    whole = task.solve(kernels, device, torch.float32)["d weight"]
    assert weights[1].grad is None
    for place in (0, 2):
        assert torch.equal(weights[place].grad, whole[place])
    assert weights[0].grad.untyped_storage().data_ptr() == weights[2].grad.untyped_storage().data_ptr()


def test_weights_that_lie_apart_or_otherwise_than_the_first(device):
    task = make_problem((3, 20, 32))
    plain = task.solve(kernels, device, torch.float32)

    def scattered(weight, **vectors):
        first, second, third = weight
        weights = [first.clone(), second.t().contiguous().t(), torch.cat([third, third], 1)[:, :32]]
        return joined(*ck.fold_norm(weights, **vectors, impl="triton"))

    assert same(task.solve(scattered, device, torch.float32), plain)


LAYOUTS = {
    "slice": lambda t: torch.cat([t, t], -1).chunk(2, -1)[1],
    "first dimension last": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: t.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("shape", [(20, 32), (3, 20, 32)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_nothing(device, shape, layout):
    task = make_problem(shape)

    def strided(**arguments):
        return kernels(**{name: LAYOUTS[layout](t) for name, t in arguments.items()})

    assert same(*(task.solve(call, device, torch.float32) for call in (strided, kernels)))


@pytest.mark.parametrize("upstream", [(1, 1, 1), (3, 1, 32), (1, 20, 32), (3, 20, 1)], ids=str)
def test_expanded_upstream_gradients(device, upstream):
    leaves = make_problem((3, 20, 32)).leaves(device, torch.float32)
    gradients = [torch.randn(size, device=device).expand(3, *size[1:]) for size in (upstream, upstream[:2])]
    gradients = [gradients[0].expand(3, 20, 32), gradients[1].expand(3, 20)]
    out = fold_norm("triton", **leaves)
    expanded = torch.autograd.grad(out, list(leaves.values()), gradients, retain_graph=True)
    dense = torch.autograd.grad(out, list(leaves.values()), [g.contiguous() for g in gradients])
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def test_one_result_alone_has_gradients(device):
    leaves = make_problem((20, 32)).leaves(device, torch.float32)
    for index, by in enumerate(("norm_weight", "norm_bias")):
        out, twin = (fold_norm(impl, **leaves)[index] for impl in ("triton", "reference"))
        torch.testing.assert_close(out, twin)
        wanted = [leaves["weight"], leaves[by]]
        for ours, theirs in zip(*(torch.autograd.grad(t.sum(), wanted) for t in (out, twin)), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 32), (3, 0, 32), (3, 20, 0)], ids=str)
def test_empty_matrices(device, shape):
    task = make_problem(shape)
    ours, theirs = (task.solve(partial(fold, impl), device, torch.float32) for impl in ("triton", "reference"))
    assert same(ours, theirs)


def test_nothing_to_fold_is_a_cast(device):
    leaves = make_problem((5, 6)).leaves(device, torch.float32)
    weight, bias = ck.fold_norm(leaves["weight"], leaves["bias"], None, None, impl="triton")
    assert weight is leaves["weight"]
    assert bias is leaves["bias"]
    weight, bias = ck.fold_norm(leaves["weight"], None, None, None, torch.float16, impl="triton")
    assert torch.equal(weight, leaves["weight"].half())
    assert bias is None


def test_matrices_and_rows_beyond_2_to_the_31_are_found(device):
    """The memory between them is reserved but never touched."""
    leaves = make_problem((2, 3, 16)).leaves(device, torch.float16, frozen=("weight",))
    memory = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    for strides in ((2**31, 16, 1), (16, 2**30, 1)):
        weight = memory.as_strided((2, 3, 16), strides).copy_(leaves["weight"])
        near, far = (kernels(**leaves | {"weight": w}) for w in (leaves["weight"], weight))
        assert torch.equal(near, far)
        assert torch.equal(*(torch.autograd.grad(out.sum(), leaves["norm_weight"])[0] for out in (near, far)))


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
    with pytest.raises(RuntimeError, match=r"kernels take float32, float16, bfloat16, these tensors are torch.float64"):
        ck.fold_norm(weight.double(), None, None, None, impl="triton")


# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("absent", [(), ("bias", "norm_bias"), ("norm_weight",)], ids=str)
def test_opcheck(device, absent):
    for operator, shape in (("fold_norm", (20, 32)), ("fold_norms", (3, 20, 32))):
        weight, *vectors = make_problem(shape, absent).leaves(device, torch.float32).values()
        if len(shape) == 3:
            # One of them frozen.
            weight = [t.detach().requires_grad_(place != 1) for place, t in enumerate(weight)]
        for dtype in (torch.float32, torch.float16):
            arguments = (weight, *vectors, dtype)
            results = torch.library.opcheck(getattr(torch.ops.crossmae_kernels, operator), arguments)
            assert set(results.values()) == {"SUCCESS"}


def test_whole_graph_compiles_with_its_gradients(device):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    compiled = torch.compile(partial(kernels, torch.float16), backend=counter, fullgraph=True)
    for shape in ((3, 20, 32), (20, 32)):
        task = make_problem(shape)
        plain = partial(kernels, torch.float16)
        assert same(*(task.solve(call, device, torch.float32) for call in (compiled, plain)))
    assert counter.frame_count == 2


def test_activation_checkpointing(device):
    def checkpointed(**arguments):
        return checkpoint(kernels, use_reentrant=False, **arguments)

    task = make_problem((20, 32))
    assert same(*(task.solve(call, device, torch.float32) for call in (checkpointed, kernels)))


def test_only_parameters_are_saved(device):
    leaves = make_problem((20, 32)).leaves(device, torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fold_norm("triton", **leaves, dtype=torch.float16)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for name, t in leaves.items() if name != "bias"}


def test_second_derivatives_are_refused(device):
    leaves = make_problem((20, 32)).leaves(device, torch.float32)
    (gradient,) = torch.autograd.grad(kernels(**leaves).square().sum(), leaves["weight"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_each_matrix_is_read_and_written_once(interpreter):
    from crossmae_kernels.audit.traffic import count_traffic

    stack, outer, inner = 2, 256, 192
    leaves = make_problem((stack, outer, inner)).leaves("cpu", torch.float32)
    with count_traffic() as forward:
        out = fold_norm("triton", **leaves, dtype=torch.float16)
    with count_traffic() as backward:
        torch.autograd.grad(out, list(leaves.values()), [torch.randn_like(t) for t in out])
    elements, outputs = stack * outer * inner, stack * outer
    # Both norms are read again by every tile of 16 rows, from caches.
    assert forward.loaded == 4 * (elements + outputs) + outputs // 16 * 2 * 4 * inner
    assert forward.stored == 2 * (elements + outputs)
    # Two sums for every tile of 64 rows, and the norms again; each tile of 64 columns reads the bias's gradient.
    assert backward.stored == 4 * elements + outputs // 64 * 2 * 4 * inner
    assert backward.loaded == 6 * elements + outputs // 64 * 2 * 4 * inner + inner // 64 * 2 * outputs
    assert backward.bytes <= 1.05 * 10 * elements


MUTATIONS = {
    "the scale left out": ("tile *= vector(scale", "tile += 0.0 * vector(scale"),
    "the bias left out": ("total += vector(bias +", "total += 0.0 * vector(bias +"),
    "norms of the first matrix": ("vector(shift + matrix * WIDTH", "vector(shift + 0 * matrix * WIDTH"),
    "the last block of columns alone": ("total += tl.sum(tile", "total = tl.sum(tile"),
    "sums of the first tile": ("sums = tl.program_id(0)", "sums = 0 * tl.program_id(0)"),
    "a part of a gradient": ("gradient += bias_gradient", "gradient += 0.0 * bias_gradient"),
}


@pytest.mark.budget
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(place, tmp_path, mutation):
    with (
        broken("crossmae_kernels.norm_folding", tmp_path, *MUTATIONS[mutation]),
        pytest.raises(AssertionError, match="errs by"),
    ):
        to_break(seeds.current, *place)(kernels)


@functools.cache
def to_break(seed, device, dtype):
    return make_problem((2, 66, 1030)).judged(partial(fold, "reference"), definition, device, dtype)


@pytest.mark.budget
def test_the_kernels_that_are_broken_pass_whole(place):
    to_break(seeds.current, *place)(kernels)


@pytest.mark.gpu
def test_cuda_graphs_replay_the_kernels(device):
    if device != "cuda":
        pytest.skip("no CUDA device")
    task = make_problem((2, 256, 192))
    leaves, upstream = task.leaves(device, torch.float32), task.upstream.to(device).half()

    def step():
        out = kernels(torch.float16, **leaves)
        return [out, *torch.autograd.grad(out, list(leaves.values()), upstream)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = [t.detach().clone() for t in step()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(captured, expected, strict=True))
