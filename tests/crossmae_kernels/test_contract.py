"""What every op guarantees, whatever it computes: a public op that is not posed in the registry fails here."""

from functools import partial

import pytest
import torch
from contract import CALLS, NAMES, PATHS, TRAINED, Witness, posed, same, solved, tensors
from operators import calls_of_operators, names_of_operators
from oracles import oracle_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import crossmae_kernels
from crossmae_kernels.runtime.dispatch import default_implementation
from crossmae_kernels.testing import Draw, Judge, poisoned_allocations, solve
from crossmae_kernels.testing.judge import gradients_of, outputs_of, upstream_of
from crossmae_kernels.testing.problem import mapped, named
from crossmae_kernels.testing.problems import tiny, vit_base

paths = pytest.mark.parametrize(("name", "dtype"), PATHS, ids=str)
calls = pytest.mark.parametrize("name", CALLS)
trained = pytest.mark.parametrize("name", TRAINED)

OPERATORS = {
    name.partition("::")[2].partition(".")[0]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("crossmae_kernels::")
}


@pytest.mark.parametrize("problems", [tiny, vit_base])
def test_every_public_op_is_posed(problems):
    with FakeTensorMode():
        posed = problems(Draw(), 1)
    assert {problem.op for problem in posed} == set(crossmae_kernels.__all__)
    assert len({str(problem) for problem in posed}) == len(posed)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_follows_the_definition(name):
    problem = posed(name, "cpu")
    ours, exact = (solve(problem, call, torch.float64) for call in (problem.by("reference"), oracle_of(problem)))
    assert ours.keys() == exact.keys()
    for result, truth in exact.items():
        # Bytes become float32.
        tolerance = 1e-6 if "uint8" in name else 1e-12
        torch.testing.assert_close(ours[result].double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.budget
@paths
def test_results_and_all_gradients_keep_to_the_budget(device, name, dtype):
    problem = posed(name, device)
    Judge(problem, dtype, oracle_of(problem)).check(problem.by("triton"))


def alone_and_frozen(problem):
    """Arguments that alone want no gradient: all but one, or one."""
    names = problem.differentiable
    yield from (set(names) - {name} for name in names)
    if len(names) > 2:
        yield from ({name} for name in names[:3])


@paths
def test_frozen_arguments_get_no_gradient_and_change_no_other(device, name, dtype):
    problem, everything = posed(name, device), solved(name, device, dtype)
    for frozen in alone_and_frozen(problem):
        with Witness():
            some = solve(problem, problem.by("triton"), dtype, frozen)
        assert some.keys() == everything.keys() - {f"d {name}" for name in frozen}
        assert same(some, {name: everything[name] for name in some})


def test_each_operator_is_called_by_a_public_op_and_none_writes_its_arguments_or_shares_its_results(device):
    with Witness() as witness:
        for name, dtype in PATHS:
            problem = posed(name, device)
            solve(problem, problem.by("triton"), dtype)
    assert witness.seen == OPERATORS


@paths
def test_results_repeat_bit_for_bit_in_a_second_call_and_a_second_backward_pass(device, name, dtype):
    problem, first = posed(name, device), solved(name, device, dtype)
    leaves, saved = problem.leaves(dtype), []
    before = {name: t.detach().clone() for name, t in named(leaves)}
    with problem.in_form():
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append((t, t.clone())) or t, lambda t: t):
            outputs = outputs_of(problem.by("triton")(**leaves))
        upstream = upstream_of(outputs)
        for last in (False, True):
            gradients = gradients_of(outputs, leaves, upstream, retain_graph=not last)
            assert same({name: out.detach() for name, out in outputs.items()} | gradients, first)
    assert same({name: t.detach() for name, t in named(leaves)}, before)
    assert all(torch.equal(a, b) for a, b in saved)
    assert same(upstream, upstream_of(outputs))


LAYOUTS = {
    "slice": lambda t: torch.cat([t, t], -1).chunk(2, -1)[1],
    "first dimension last": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: t.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@paths
def test_layouts_change_nothing(device, name, dtype, layout):
    problem = posed(name, device)

    def lay(name, tensor):
        # Of images in another layout a loss may be summed in another order.
        return tensor if problem.op == "patch_loss" and name == "images" else LAYOUTS[layout](tensor)

    def strided(**arguments):
        return problem.by("triton")(**mapped(arguments, lay))

    assert same(solve(problem, strided, dtype), solved(name, device, dtype))


@paths
def test_expanded_upstream_gradients_change_nothing(device, name, dtype):
    problem = posed(name, device)
    leaves = problem.leaves(dtype)
    with problem.in_form():
        outputs = outputs_of(problem.by("triton")(**leaves))
        for shared in (lambda t: t.flatten()[0], lambda t: t[:1], lambda t: t[..., :1]):
            upstream = {name: t if t.dim() == 0 else shared(t) for name, t in upstream_of(outputs).items()}
            expanded = {name: t.expand(outputs[name].shape) for name, t in upstream.items()}
            contiguous = {name: t.contiguous() for name, t in expanded.items()}
            ours, theirs = (gradients_of(outputs, leaves, given, retain_graph=True) for given in (expanded, contiguous))
            if problem.op == "project_feature_maps":
                # The library multiplies matrices of another layout in another order.
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            else:
                assert same(ours, theirs)


@paths
def test_no_rows(device, name, dtype):
    problem = posed(name, device, batch=0)
    if problem.op == "fold_norm" or problem.options.get("reduction") == "mean":
        # There is no batch, or no mean.
        return
    with poisoned_allocations(), Witness():
        found = solve(problem, problem.by("triton"), dtype)
    one = solved(name, device, dtype)
    assert found.keys() == one.keys()
    for result, t in found.items():
        assert t.shape == tuple(0 if size == 2 and not t.numel() else size for size in one[result].shape)
        assert not t.any()


@calls
def test_compiled_whole_with_its_gradients_and_once_for_all_batches(device, name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    problem = posed(name, device)
    compiled = torch.compile(problem.by("triton"), backend=counter, fullgraph=True)
    for batch in (2, 3, 4):
        problem = posed(name, device, batch)
        ours, theirs = (solve(problem, call, torch.float32) for call in (compiled, problem.by("triton")))
        if device == "cpu":
            assert same(ours, theirs)
        else:
            # The compiler's own sums and the library's products may go in another order.
            torch.testing.assert_close(ours, theirs)
    # The first size as such, the second as any size.
    assert counter.frame_count == (1 if problem.op == "fold_norm" else 2)


@trained
def test_compiled_under_autocast(device, name):
    torch._dynamo.reset()
    problem = posed(name, device)
    compiled = torch.compile(problem.by("triton"), backend="aot_eager", fullgraph=True)
    ours, theirs = (
        solve(problem, call, torch.float32, autocast=torch.float16) for call in (compiled, problem.by("triton"))
    )
    assert same(ours, theirs)


@pytest.mark.budget
@pytest.mark.parametrize("name", [name for name in NAMES if "gather" not in name])
def test_autocast_keeps_to_the_budget_and_gradients_to_the_dtype_of_the_leaves(device, name):
    # Rows that are gathered under autocast are in its dtype at once, which eager's are not.
    problem = posed(name, device)
    if problem.op == "mix_feature_maps":

        def eager(**arguments):
            # PyTorch leaves LayerNorm's result in float32 on some devices.
            return problem.by("reference")(**arguments).to(torch.float16)
    else:
        eager = problem.by("reference")
    judge = Judge(problem, torch.float32, oracle_of(problem), eager, autocast=torch.float16)
    found = judge.check(problem.by("triton"))
    assert all(t.dtype == torch.float32 for name, t in found.items() if name.startswith("d "))


@trained
def test_autocast_does_not_reach_into_the_backward_pass(device, name):
    problem = posed(name, device)
    leaves = problem.leaves(torch.float32)
    with problem.in_form():
        outputs = outputs_of(problem.by("triton")(**leaves))
        with torch.autocast(device, torch.float16):
            gradients = gradients_of(outputs, leaves, upstream_of(outputs))
    assert same({name: out.detach() for name, out in outputs.items()} | gradients, solved(name, device, torch.float32))


@calls
def test_activation_checkpointing_changes_nothing(device, name):
    problem = posed(name, device)
    call = partial(checkpoint, problem.by("triton"), use_reentrant=False)
    assert same(solve(problem, call, torch.float32), solved(name, device, torch.float32))


@trained
def test_second_derivatives_are_refused(device, name):
    problem = posed(name, device)
    leaves = problem.leaves(torch.float32)
    with problem.in_form():
        outputs = outputs_of(problem.by("triton")(**leaves))
        trained = [leaf for _, leaf in named(leaves) if leaf.requires_grad]
        gradients = torch.autograd.grad(sum(t.square().sum() for t in outputs.values()), trained, create_graph=True)
        total = sum(t.sum() for t in gradients)
        if problem.op == "gather_patches":
            # It is linear, and so is its gradient.
            total.backward()
        else:
            with pytest.raises(NotImplementedError, match="no second derivative"):
                total.backward()


@calls
def test_the_process_wide_default_reaches_the_kernels(device, name):
    problem = posed(name, device)
    leaves = problem.leaves(torch.float32)
    called = {}
    for impl in ("reference", "triton"):
        with names_of_operators() as called[impl]:
            problem.by(impl)(**leaves)
        with default_implementation(impl), names_of_operators() as names:
            problem.by()(**leaves)
        assert names == called[impl]
    assert not called["reference"]
    assert called["triton"]


# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@calls
def test_opcheck_of_every_operator_with_and_without_gradients(device, name):
    problem = posed(name, device)
    with calls_of_operators() as recorded:
        solve(problem, problem.by("triton"), torch.float32)
    for operator, arguments in recorded:
        wanted = [t.requires_grad for t in tensors(arguments)]
        for gradients in {False, any(wanted)}:
            given = tree_map_only(torch.Tensor, lambda t: t.detach().clone(), arguments)
            for tensor, want in zip(tensors(given), wanted, strict=True):
                tensor.requires_grad_(want and gradients)
            assert set(torch.library.opcheck(operator, given).values()) == {"SUCCESS"}


def flops(problem, impl, dtype, frozen):
    """That PyTorch counts forward and backward."""
    leaves = problem.leaves(dtype, frozen)
    with problem.in_form():
        with FlopCounterMode(display=False) as forward:
            outputs = outputs_of(problem.by(impl)(**leaves))
        with FlopCounterMode(display=False) as backward:
            gradients_of(outputs, leaves, upstream_of(outputs))
    return forward.get_total_flops(), backward.get_total_flops()


@paths
def test_flops_are_those_of_the_reference(device, name, dtype):
    """As PyTorch counts its own products, whatever the form of kernels, and for every gradient that is wanted."""
    problem = posed(name, device)
    # What the gradient of a norm's affine takes is another gradient where the norm is folded.
    norms = {name for name in problem.differentiable if name.startswith("norm_")}
    on_cpu = posed(name, "cpu")
    forward, backward = flops(problem, "triton", dtype, norms)
    # On a GPU, PyTorch's formula of attention's backward pass has a fifth product.
    assert (forward, backward) == flops(on_cpu, "reference", torch.float32, norms)
    assert backward == (2 * forward if problem.differentiable else 0)
    if name not in CALLS:
        return
    for frozen in alone_and_frozen(problem):
        assert flops(problem, "triton", dtype, frozen | norms) == flops(
            on_cpu, "reference", torch.float32, frozen | norms
        )


@pytest.mark.gpu
@paths
def test_cuda_graphs_replay_the_kernels(device, name, dtype):
    if device != "cuda":
        pytest.skip("no CUDA device")
    problem = posed(name, device)
    leaves = problem.leaves(dtype)

    def step():
        outputs = outputs_of(problem.by("triton")(**leaves))
        return {name: out.detach() for name, out in outputs.items()} | gradients_of(outputs, leaves, upstream)

    with problem.in_form():
        upstream = upstream_of(outputs_of(problem.by("triton")(**leaves)))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = {name: t.clone() for name, t in step().items()}
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
    torch.testing.assert_close(captured, expected)
