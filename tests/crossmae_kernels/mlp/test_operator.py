"""The operator inside of PyTorch: registration, compilation, autocast, checkpointing, memory."""

import pytest
import torch
from operators import names_of_operators
from problems import same
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck
from crossmae_kernels.runtime.dispatch import default_implementation

ROWS, WIDTH, HIDDEN = (2, 5), 32, 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("keep", "keep_hidden"), [(True, True), (True, False)])
# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(problem, device, dtype, keep, keep_hidden):
    leaves = problem(ROWS, WIDTH, HIDDEN).leaves(device, dtype)
    arguments = [leaves[name] for name in ("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")]
    results = torch.library.opcheck(torch.ops.crossmae_kernels.mlp, (*arguments, 1e-6, keep, keep_hidden))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("policy", ["save", "recompute"])
def test_whole_graph_compiles_with_its_gradients_and_once_for_all_batches(problem, by, device, policy):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    compiled = torch.compile(by["kernels"](policy), backend=counter, fullgraph=True)
    for batch in (2, 3, 5, 6):
        task = problem((batch, 5), WIDTH, HIDDEN)
        ours, theirs = (task.solve(call, device, torch.float32) for call in (compiled, by["kernels"](policy)))
        if device == "cpu":
            assert same(ours, theirs)
        else:
            # The library may multiply in another order.
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name])
    # The first size as such, the second as any size.
    assert counter.frame_count == 2


def test_compiles_under_autocast(problem, by, device):
    torch._dynamo.reset()
    compiled = torch.compile(by["kernels"](), backend="aot_eager", fullgraph=True)
    task = problem(ROWS, WIDTH, HIDDEN)
    assert same(*(task.solve(call, device, torch.float32, torch.float16) for call in (compiled, by["kernels"]())))


def test_operators_per_call(problem, by, device):
    leaves = problem(ROWS, WIDTH, HIDDEN).leaves(device, torch.float32)
    with names_of_operators() as forward:
        out = by["kernels"]()(**leaves)
    with names_of_operators() as backward:
        out.sum().backward()
    # The norm's affine is folded into fc1 by an operator of its own.
    assert forward == ["crossmae_kernels::fold_norm", "crossmae_kernels::mlp"]
    assert backward == ["crossmae_kernels::mlp_backward", "crossmae_kernels::fold_norm_backward"]


def test_autocast_does_not_reach_into_the_backward_pass(problem, by, device):
    task = problem(ROWS, WIDTH, HIDDEN)
    leaves = task.leaves(device, torch.float32)
    given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    plain = task.solve(by["kernels"](), device, torch.float32)
    out = by["kernels"]()(**leaves)
    with torch.autocast(device, torch.float16):
        gradients = torch.autograd.grad(out, list(given.values()), task.upstream.to(device))
    for name, gradient in zip(given, gradients, strict=True):
        assert torch.equal(gradient, plain[f"d {name}"])


def test_a_16_bit_stream_of_another_dtype_than_autocasts_goes_to_the_reference(problem, by, device):
    leaves = problem(ROWS, WIDTH, HIDDEN).leaves(device, torch.float32)
    leaves["x"] = leaves["x"].detach().bfloat16()
    with (
        torch.autocast(device, torch.float16),
        pytest.raises(RuntimeError, match=r"x in float32 or torch.float16, got"),
    ):
        by["kernels"]()(**leaves)


@pytest.mark.parametrize("policy", ["save", "recompute"])
def test_activation_checkpointing(problem, by, device, policy):
    task = problem(ROWS, WIDTH, HIDDEN)

    def checkpointed(**arguments):
        return checkpoint(by["kernels"](policy), use_reentrant=False, **arguments)

    assert same(*(task.solve(call, device, torch.float16) for call in (checkpointed, by["kernels"](policy))))


@pytest.mark.parametrize("form_name", ["single", "tiled", "library"])
@pytest.mark.parametrize(("policy", "hidden_layers"), [("save", 1), ("recompute", 0)])
def test_saved_bytes(problem, by, form, device, form_name, policy, hidden_layers):
    leaves = problem((3, 50), WIDTH, HIDDEN).leaves(device, torch.float32)
    weights = {id(leaf) for leaf in leaves.values()}
    saved = []
    with (
        torch.autocast(device, torch.float16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        form(form_name),
    ):
        by["kernels"](policy)(**leaves)
    # What the fold and the casts of weights keep has no rows.
    rows = [t for t in saved if id(t) not in weights and t.shape[:1] == (150,)]
    assert sum(t.numel() * t.element_size() for t in rows) == 150 * (2 * WIDTH + 4 + hidden_layers * 2 * HIDDEN)
    assert not any(t.dtype == torch.float32 and t.numel() > 150 and t.shape[0] == 150 for t in saved)
    assert not any(t.shape == (3, 50, WIDTH) for t in saved)


def test_nothing_is_kept_where_no_gradient_is_wanted(problem, device):
    leaves = problem(ROWS, WIDTH, HIDDEN).leaves(device, torch.float16)
    arguments = [leaves[name].detach() for name in ("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")]
    _, *kept = torch.ops.crossmae_kernels.mlp(*arguments, 1e-6, False, False)
    assert [t.numel() for t in kept] == [0, 0, 0]


def test_second_derivatives_are_refused(problem, by, device):
    leaves = problem(ROWS, WIDTH, HIDDEN).leaves(device, torch.float32)
    (gradient,) = torch.autograd.grad(by["kernels"]()(**leaves).square().sum(), leaves["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_process_wide_default_reaches_the_kernels(problem, by, device):
    leaves = problem(ROWS, WIDTH, HIDDEN).leaves(device, torch.float32)
    with names_of_operators() as called:
        by["eager"](**leaves)
    assert not called
    with default_implementation("triton"), names_of_operators() as called:
        ck.mlp(**leaves)
    assert called == ["crossmae_kernels::fold_norm", "crossmae_kernels::mlp"]


@pytest.mark.gpu
@pytest.mark.parametrize("form_name", ["single", "tiled", "library"])
def test_cuda_graphs_replay_the_kernels(problem, by, form, device, form_name):
    if device != "cuda":
        pytest.skip("no CUDA device")
    task = problem((4, 49), 128, 512)
    leaves = task.leaves(device, torch.float16)
    upstream = task.upstream.to(device, torch.float16)

    def step():
        out = by["kernels"]()(**leaves)
        return [out, *torch.autograd.grad(out, list(leaves.values()), upstream)]

    with form(form_name):
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
