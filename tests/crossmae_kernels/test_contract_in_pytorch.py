"""What every op guarantees inside of PyTorch: compiled, under autocast, checkpointed, counted, captured."""

from functools import partial

import pytest
import torch
from contract import CALLS, NAMES, PATHS, TRAINED, alone_and_frozen, posed, same, solved, tensors
from operators import calls_of_operators, names_of_operators
from oracles import oracle_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from crossmae_kernels.runtime.dispatch import default_implementation
from crossmae_kernels.testing import Judge, solve
from crossmae_kernels.testing.judge import gradients_of, outputs_of, upstream_of
from crossmae_kernels.testing.problem import named

paths = pytest.mark.parametrize(("name", "dtype"), PATHS, ids=str)
calls = pytest.mark.parametrize("name", CALLS)
trained = pytest.mark.parametrize("name", TRAINED)
FIRST = {posed(name, "cpu").op: name for name in reversed(CALLS)}


# Of each op the first problem; attention is given queries and keeps things in more ways than one.
COMPILED = [name for name in CALLS if name in FIRST.values() or "attention" in name]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_whole_with_its_gradients_and_once_for_all_batches(device, name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    problem = posed(name, device)
    compiled = torch.compile(problem.by("triton"), backend=counter, fullgraph=True)
    for batch in (2, 3):
        problem = posed(name, device, batch)
        ours, theirs = (solve(problem, call, torch.float32) for call in (compiled, problem.by("triton")))
        if device == "cpu":
            assert same(ours, theirs)
        else:
            # The compiler's own sums and the library's products may go in another order.
            torch.testing.assert_close(ours, theirs)
    compiled(**posed(name, device, 4).leaves(torch.float32))
    # The first size as such, the second as any size.
    assert counter.frame_count == (1 if problem.op == "fold_norm" else 2)


@pytest.mark.parametrize("name", [name for name in FIRST.values() if name in TRAINED])
def test_compiled_under_autocast(device, name):
    torch._dynamo.reset()
    problem = posed(name, device)
    compiled = torch.compile(problem.by("triton"), backend="aot_eager", fullgraph=True)
    ours, theirs = (
        solve(problem, call, torch.float32, autocast=torch.bfloat16) for call in (compiled, problem.by("triton"))
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
            return problem.by("reference")(**arguments).to(torch.bfloat16)
    else:
        eager = problem.by("reference")
    judge = Judge(problem, torch.float32, oracle_of(problem), eager, autocast=torch.bfloat16)
    found = judge.check(problem.by("triton"))
    assert all(t.dtype == torch.float32 for name, t in found.items() if name.startswith("d "))


@trained
def test_autocast_does_not_reach_into_the_backward_pass(device, name):
    problem = posed(name, device)
    leaves = problem.leaves(torch.float32)
    with problem.in_form():
        outputs = outputs_of(problem.by("triton")(**leaves))
        with torch.autocast(device, torch.bfloat16):
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
        given = tree_map_only(torch.Tensor, lambda t: t.detach().clone(), arguments)
        kinds = ("test_schema", "test_autograd_registration", "test_faketensor")
        assert set(torch.library.opcheck(operator, given, test_utils=kinds).values()) == {"SUCCESS"}
        # Backward operators have no gradients, but for one of a linear operator. Compiled they are above.
        if any(wanted) and "_backward" not in operator.name():
            for tensor, want in zip(tensors(given), wanted, strict=True):
                tensor.requires_grad_(want)
            assert set(torch.library.opcheck(operator, given, test_utils=kinds).values()) == {"SUCCESS"}


def flops(problem, impl, dtype, frozen):
    """That PyTorch counts forward and backward, of shapes alone; of attention it counts product by product."""
    leaves = problem.leaves(dtype, frozen)
    with problem.in_form(), sdpa_kernel(SDPBackend.MATH), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves = tree_map_only(torch.Tensor, mode.from_tensor, leaves)
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
    assert (forward, backward) == flops(on_cpu, "reference", torch.float32, norms)
    assert backward == (2 * forward if problem.differentiable else 0)
    if name not in CALLS:
        return
    names = problem.differentiable
    for frozen in alone_and_frozen(problem):
        # Of a sequence, all or none: kernels make the gradients of all at once.
        trained = {name.partition("[")[0] for name in set(names) - frozen}
        frozen = norms | {name for name in names if name.partition("[")[0] not in trained}
        assert flops(problem, "triton", dtype, frozen) == flops(on_cpu, "reference", torch.float32, frozen)


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
