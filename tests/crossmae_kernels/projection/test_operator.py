"""The operators inside of PyTorch: registration, compilation, autocast, checkpointing, memory."""

import pytest
import torch
from operators import names_of_operators
from problems import same
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

INNER, OUTER = 32, 48
OPTIONS = [("norm_linear", None), ("norm_linear", "gelu"), ("linear_residual", 0), ("linear_residual", 6)]


@pytest.fixture(params=OPTIONS, ids=lambda c: f"{c[0]}-{c[1]}")
def case(request, problems, by, ids_of, device):
    """An op, and for a number of images a problem with the kernels that solve it."""
    op, option = request.param

    def make(batch=2):
        if op == "norm_linear":
            return problems[op]((batch, 5), INNER, OUTER), by[op]["kernels"](option), None
        ids = ids_of((batch, 5), option)
        ids = None if ids is None else ids.to(device)
        return problems[op]((batch, 5), INNER, OUTER, table=option), by[op]["kernels"](ids), ids

    return op, option, make


# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(case, device):
    op, option, make = case
    task, _, ids = make()
    leaves = task.leaves(device, torch.float32)
    if op == "norm_linear":
        arguments = (leaves["x"], leaves["weight"], leaves["bias"], 1e-6, option == "gelu", True)
    else:
        arguments = (*leaves.values(), ids)
    results = torch.library.opcheck(getattr(torch.ops.crossmae_kernels, op), arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_whole_graph_compiles_with_its_gradients_and_once_for_all_batches(case, by, device):
    torch._dynamo.reset()
    op, option, make = case

    def call(ids, arguments):
        return by[op]["kernels"](ids if op == "linear_residual" else option)(**arguments)

    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    for batch in (2, 3, 5, 6):
        task, kernels, ids = make(batch)
        ours = task.solve(lambda ids=ids, **arguments: compiled(ids, arguments), device, torch.float32)
        theirs = task.solve(kernels, device, torch.float32)
        if device == "cpu":
            assert same(ours, theirs)
        else:
            # The library may multiply in another order.
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name])
    # The first size as such, the second as any size.
    assert counter.frame_count == 2


def test_operators_per_call(case, device):
    op, _, make = case
    task, kernels, _ = make()
    with names_of_operators() as forward:
        out = kernels(**task.leaves(device, torch.float32))
    with names_of_operators() as backward:
        out.sum().backward()
    # The norm's affine is folded into the weight by an operator of its own.
    names = ["fold_norm", op] if op == "norm_linear" else [op]
    assert forward == [f"crossmae_kernels::{name}" for name in names]
    assert backward == [f"crossmae_kernels::{name}_backward" for name in reversed(names)]


def test_a_dense_residual_has_the_upstream_gradient_itself(problems, by, device):
    leaves = problems["linear_residual"]((2, 5), INNER, OUTER).leaves(device, torch.float32, ("x", "weight", "bias"))
    out = by["linear_residual"]["kernels"]()(**leaves)
    with names_of_operators() as called:
        out.backward(upstream := torch.randn_like(out))
    assert not called
    assert torch.equal(leaves["residual"].grad, upstream)


def test_autocast_does_not_reach_into_the_backward_pass(problems, by, device):
    for op in ("norm_linear", "linear_residual"):
        task = problems[op]((2, 5), INNER, OUTER)
        leaves = task.leaves(device, torch.float32)
        plain = task.solve(by[op]["kernels"](), device, torch.float32)
        out = by[op]["kernels"]()(**leaves)
        with torch.autocast(device, torch.float16):
            gradients = torch.autograd.grad(out, list(leaves.values()), task.upstream.to(device))
        for name, gradient in zip(leaves, gradients, strict=True):
            assert torch.equal(gradient, plain[f"d {name}"])


def test_activation_checkpointing(case, device):
    _, _, make = case
    task, kernels, _ = make()

    def checkpointed(**arguments):
        return checkpoint(kernels, use_reentrant=False, **arguments)

    assert same(*(task.solve(call, device, torch.float16) for call in (checkpointed, kernels)))


def test_saved_bytes(problems, by, device):
    def rows_saved(op, option):
        leaves = problems[op]((3, 50), INNER, OUTER).leaves(device, torch.float32)
        saved = []
        with (
            torch.autocast(device, torch.float16),
            torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        ):
            by[op]["kernels"](option)(**leaves)
        return sum(t.numel() * t.element_size() for t in saved if 150 in (t.shape[0], t.shape[:-1].numel()))

    assert rows_saved("norm_linear", None) == 150 * (2 * INNER + 4)
    assert rows_saved("norm_linear", "gelu") == 150 * (2 * INNER + 4 + 2 * OUTER)
    # The input, and no residual.
    assert rows_saved("linear_residual", None) == 150 * 2 * INNER


def test_second_derivatives_are_refused(case, device):
    _, _, make = case
    task, kernels, _ = make()
    leaves = task.leaves(device, torch.float32)
    (gradient,) = torch.autograd.grad(kernels(**leaves).square().sum(), leaves["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_cuda_graphs_replay_the_kernels(case, device, dtype):
    if device != "cuda":
        pytest.skip("no CUDA device")
    _, _, make = case
    task, kernels, _ = make(64)
    leaves = task.leaves(device, dtype)
    upstream = task.upstream.to(device, dtype)

    def step():
        out = kernels(**leaves)
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
    for ours, theirs in zip(captured, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
