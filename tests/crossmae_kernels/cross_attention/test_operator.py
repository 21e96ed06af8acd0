"""The operator inside of PyTorch: registration, compilation, autocast, checkpointing."""

import pytest
import torch
from operators import names_of_operators
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck
from crossmae_kernels.runtime.dispatch import default_implementation


def _kernels(*arguments, **others):
    return ck.cross_attention(*arguments, impl="triton", **others)


# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("keys", [7, 67])
@pytest.mark.parametrize("table", [0, 6])
def test_opcheck(problem, device, keys, table):
    task = problem(5, keys, 2, 16, table)
    ids = None if task.ids is None else task.ids.to(device)
    arguments = (*task.arguments(device, torch.float32), ids, 2, 0.25)
    results = torch.library.opcheck(torch.ops.crossmae_kernels.cross_attention, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("keys", [7, 67])
@pytest.mark.parametrize("table", [0, 6])
def test_whole_graph_compiles_with_its_gradients_and_once_for_all_batches(problem, device, keys, table):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    compiled = torch.compile(_kernels, backend=counter, fullgraph=True)
    for batch in (2, 3, 5, 6):
        task = problem(5, keys, 2, 16, table, batch)
        for ours, theirs in zip(
            task.solve(compiled, device, torch.float32), task.fused(device, torch.float32), strict=True
        ):
            assert torch.equal(ours, theirs)
    # The first size as such, the second as any size.
    assert counter.frame_count == 2


def test_other_numbers_of_queries_and_keys_do_not_recompile_but_where_the_kernels_change(problem, device):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    compiled = torch.compile(_kernels, backend=counter, fullgraph=True)
    for queries, keys, frames in ((5, 7, 1), (6, 8, 2), (9, 12, 2), (9, 67, 3), (11, 72, 3)):
        task = problem(queries, keys, 2, 16, table=6)
        assert torch.equal(task.solve(compiled, device, torch.float32)[1], task.fused(device, torch.float32)[1])
        assert counter.frame_count == frames


def test_one_operator_per_call(problem, device):
    task = problem(5, 7, 2, 16, table=6)
    arguments = task.arguments(device, torch.float32)
    with names_of_operators() as forward:
        out = _kernels(*arguments, 2, task.ids.to(device))
    with names_of_operators() as backward:
        out.sum().backward()
    assert forward == ["crossmae_kernels::cross_attention"]
    assert backward == ["crossmae_kernels::cross_attention_backward"]


@pytest.mark.parametrize("keys", [7, 131])
def test_autocast_casts_and_returns_gradients_in_the_dtype_of_the_leaves(problem, device, keys):
    task = problem(5, keys, 2, 16, table=6)
    inputs = task.arguments(device, torch.float32)
    ids = task.ids.to(device)
    with torch.autocast(device, torch.float16):
        out = _kernels(*inputs, 2, ids)
    explicit = _kernels(*(t.half() for t in inputs), 2, ids)
    assert out.dtype == torch.float16
    assert torch.equal(out, explicit)
    upstream = task.upstream.to(device)
    for ours, theirs in zip(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(explicit, inputs, upstream), strict=True
    ):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("bfloat16_anywhere")
def test_autocast_may_be_set_to_either_dtype_and_mends_mixed_arguments(problem, device, dtype, monkeypatch):
    from crossmae_kernels.cross_attention import launch

    arrived = []

    def forward(query, key, value, *others):
        # Not the kernels: the interpreter cannot tell bfloat16.
        arrived.extend(t.dtype for t in (query, key, value))
        return torch.zeros_like(query), query.new_empty(0, dtype=torch.float32)

    monkeypatch.setattr(launch, "forward", forward)
    query, key, value = problem(5, 7, 2, 16).arguments(device, torch.float32)
    with torch.autocast(device, dtype):
        out = _kernels(query, key.half(), value.bfloat16(), 2)
    assert arrived == [dtype] * 3
    assert out.dtype == dtype
    with pytest.raises(TypeError, match=r"key must be torch.float32 like query"):
        _kernels(query, key.half(), value, 2)


@pytest.mark.parametrize("keys", [7, 131])
def test_activation_checkpointing(problem, device, keys):
    task = problem(5, keys, 2, 16, table=6)

    def checkpointed(*arguments):
        return checkpoint(_kernels, *arguments, use_reentrant=False)

    for ours, theirs in zip(
        task.solve(checkpointed, device, torch.float32), task.fused(device, torch.float32), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("keys", "kept"), [(7, 3), (131, 5)])
def test_saves_inputs_and_beyond_the_short_path_output_and_statistics(problem, device, keys, kept):
    task = problem(5, keys, 2, 16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = _kernels(*task.arguments(device, torch.float16), 2)
    assert len(saved) == kept
    assert [t.shape for t in saved if t.dtype == torch.float32] == ([(2, 2, 5)] if kept == 5 else [])
    assert (saved[-2].data_ptr() == out.data_ptr()) == (kept == 5)


def test_second_derivatives_are_refused(problem, device):
    task = problem(5, 7, 2, 16)
    query, key, value = task.arguments(device, torch.float32)
    (gradient,) = torch.autograd.grad(_kernels(query, key, value, 2).square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_process_wide_default_reaches_the_kernels(problem, device, monkeypatch):
    from crossmae_kernels.cross_attention import launch

    launched = []
    forward = launch.forward
    monkeypatch.setattr(launch, "forward", lambda *a: launched.append(1) or forward(*a))
    task = problem(5, 7, 2, 16)
    arguments = (*task.arguments(device, torch.float32), 2)
    ck.cross_attention(*arguments, impl="reference")
    assert not launched
    ck.cross_attention(*arguments)
    assert len(launched) == (device == "cuda")
    with default_implementation("triton"):
        ck.cross_attention(*arguments)
    assert len(launched) == (device == "cuda") + 1


@pytest.mark.gpu
def test_cuda_graphs_replay_the_kernels(problem, device):
    if device != "cuda":
        pytest.skip("no CUDA device")
    task = problem(49, 50, 2, 32, table=20)
    inputs, ids, upstream = (
        task.arguments(device, torch.float16), task.ids.to(device), task.upstream.to(device, torch.float16)
    )  # fmt: skip

    def step():
        out = _kernels(*inputs, 2, ids)
        return [out, *torch.autograd.grad(out, inputs, upstream)]

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
        assert torch.equal(ours, theirs)
