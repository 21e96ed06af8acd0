"""The operator inside of PyTorch: registration, compilation, autocast, checkpointing, memory."""

import pytest
import torch
from operators import allocated_bytes, names_of_operators
from problems import same
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck
from crossmae_kernels.runtime.dispatch import default_implementation

MAPS, MIXES, WIDTH = 3, 2, 24

# Mixes and width that in 16 bits are normalised on chip, and where that is a pass of its own.
HELD, NOT_HELD = (12, 1280), (20, 768)

# In 16 bits LayerNorm is on chip, in float32 a pass of its own.
FORMS = [(torch.float16, True), (torch.float32, True), (torch.float32, False)]


@pytest.fixture
def maps_and_weight(problem, device):
    """The arguments without an affine, as leaves."""

    def make(dtype, rows=(1, 3), maps=MAPS, mixes=MIXES, width=WIDTH):
        *of_maps, weight, _, _ = problem(rows, maps, mixes, width).leaves(device, dtype).values()
        return of_maps, weight

    return make


@pytest.mark.parametrize(("dtype", "normalize"), FORMS)
# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(maps_and_weight, dtype, normalize):
    arguments = (*maps_and_weight(dtype), 1e-6, normalize)
    results = torch.library.opcheck(torch.ops.crossmae_kernels.mix_feature_maps, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("dtype", "normalize"), FORMS)
def test_whole_graph_compiles_with_its_gradients_and_once_for_all_batches(problem, by, device, dtype, normalize):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    kernels = by["kernels"](normalize)
    compiled = torch.compile(kernels, backend=counter, fullgraph=True)
    for rows in ((1, 2), (2, 3), (3, 2)):
        task = problem(rows, MAPS, MIXES, WIDTH, affine=normalize)
        ours, theirs = (task.solve(call, device, dtype) for call in (compiled, kernels))
        if device == "cpu":
            assert same(ours, theirs)
        else:
            # Compilation may fuse the affine's few operators in another way.
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name])
    # The first size as such, the second as any size.
    assert counter.frame_count == 2


def test_compiles_under_autocast(problem, by, device):
    torch._dynamo.reset()
    compiled = torch.compile(by["kernels"](), backend="aot_eager", fullgraph=True)
    task = problem((2, 5), MAPS, MIXES, WIDTH)
    assert same(*(task.solve(call, device, torch.float32, torch.float16) for call in (compiled, by["kernels"]())))


def test_one_operator_per_call(maps_and_weight):
    maps, weight = maps_and_weight(torch.float32)
    with names_of_operators() as forward:
        out = ck.mix_feature_maps(maps, weight, impl="triton")
    with names_of_operators() as backward:
        out.sum().backward()
    assert forward == ["crossmae_kernels::mix_feature_maps"]
    assert backward == ["crossmae_kernels::mix_feature_maps_backward"]


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("bfloat16_anywhere")
def test_autocast_casts_the_weights_and_leaves_the_maps_as_they_are(maps_and_weight, device, compute, monkeypatch):
    from crossmae_kernels.feature_mixing import launch

    arrived = []

    def forward(maps, weight, *others):
        # Not the kernels: the interpreter cannot tell bfloat16.
        arrived.extend([*(t.data_ptr() for t in maps), weight.dtype])
        return weight.new_zeros(MIXES, *maps[0].shape), *(maps[0].new_empty(0) for _ in range(2))

    monkeypatch.setattr(launch, "forward", forward)
    maps, weight = maps_and_weight(torch.float32)
    with torch.autocast(device, compute):
        out = ck.mix_feature_maps(maps, weight, impl="triton")
    assert arrived == [*(t.data_ptr() for t in maps), compute]
    assert out.dtype == compute


def test_autocast_does_not_reach_into_the_backward_pass(problem, by, device):
    task = problem((2, 5), MAPS, MIXES, WIDTH)
    plain = task.solve(by["kernels"](), device, torch.float32)
    leaves = {name: t for name, t in task.leaves(device, torch.float32).items() if t is not None}
    out = by["kernels"]()(**leaves)
    with torch.autocast(device, torch.float16):
        gradients = torch.autograd.grad(out, list(leaves.values()), task.upstream.to(device))
    for name, gradient in zip(leaves, gradients, strict=True):
        assert torch.equal(gradient, plain[f"d {name}"])


@pytest.mark.parametrize("normalize", [True, False])
def test_activation_checkpointing(problem, by, device, normalize):
    task, kernels = problem((2, 5), MAPS, MIXES, WIDTH), by["kernels"](normalize)

    def checkpointed(**arguments):
        return checkpoint(kernels, use_reentrant=False, **arguments)

    assert same(*(task.solve(call, device, torch.float16) for call in (checkpointed, kernels)))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("mixes", "width"), [HELD, NOT_HELD])
def test_saves_maps_and_statistics_and_the_mixes_only_for_a_pass_of_layernorms_own(
    maps_and_weight, mixes, width, normalize
):
    maps, weight = maps_and_weight(torch.float16, (1, 2), MAPS, mixes, width)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = ck.mix_feature_maps(maps, weight, normalize=normalize, impl="triton")
    inputs = [t.data_ptr() for t in (*maps, weight)]
    own = [t for t in saved if t.data_ptr() not in inputs]
    assert len(saved) - len(own) == MAPS + 1
    rows = [t for t in own if t.numel() and t.dtype != torch.float32]
    assert [t.data_ptr() for t in rows] == ([out.data_ptr()] if normalize and (mixes, width) != HELD else [])
    statistics = sum(t.numel() for t in own if t.dtype == torch.float32)
    assert statistics <= 2 * mixes * 2
    assert bool(statistics) == normalize


@pytest.mark.parametrize(("mixes", "width", "normalize"), [(*HELD, True), (*NOT_HELD, True), (*HELD, False)])
def test_the_maps_are_never_stacked(maps_and_weight, mixes, width, normalize):
    # Beneath the operator, to see what it allocates.
    from crossmae_kernels.feature_mixing import launch

    maps, weight = maps_and_weight(torch.float16, (1, 1), 33, mixes, width)
    maps, weight = [t.detach() for t in maps], weight.detach()
    upstream = torch.randn(mixes, 1, 1, width, device=weight.device).half()
    one = maps[0].numel() * 2
    # Partial sums of the weights' gradient, one for each panel, and their sum; statistics are less.
    few = 8 * 4 * weight.numel()
    assert few < len(maps) * one / 2
    with allocated_bytes() as forward:
        out, means, rstds = launch.forward(maps, weight, 1e-6, normalize)
    assert sum(forward) <= (2 if normalize and (mixes, width) == NOT_HELD else 1) * mixes * one + few
    kept = out if normalize and (mixes, width) != HELD else None
    with allocated_bytes() as backward:
        launch.backward(upstream, maps, weight, kept, means, rstds, normalize, [False, True])
    assert sum(backward) <= (0 if kept is None else mixes * one) + few
    with allocated_bytes() as backward:
        launch.backward(upstream, maps, weight, kept, means, rstds, normalize, [True, False])
    # The gradients themselves.
    assert sum(backward) <= (len(maps) + (0 if kept is None else mixes)) * one


def test_second_derivatives_are_refused(maps_and_weight):
    maps, weight = maps_and_weight(torch.float32)
    out = ck.mix_feature_maps(maps, weight, impl="triton")
    (gradient,) = torch.autograd.grad(out.square().sum(), maps[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_rows_too_wide_and_other_dtypes_go_to_the_reference(maps_and_weight, device):
    maps, weight = maps_and_weight(torch.float64)
    with pytest.raises(RuntimeError, match=r"kernels take float32, float16, bfloat16, these tensors are torch.float64"):
        ck.mix_feature_maps(maps, weight, impl="triton")
    with pytest.raises(RuntimeError, match=r"rows of up to 16384, these have 16385"):
        ck.mix_feature_maps([torch.empty(1, 1, 16385, device=device)], torch.empty(1, 1, device=device), impl="triton")


def test_process_wide_default_reaches_the_kernels(maps_and_weight):
    maps, weight = maps_and_weight(torch.float32)
    with names_of_operators() as called:
        ck.mix_feature_maps(maps, weight, impl="reference")
    assert not called
    with default_implementation("triton"), names_of_operators() as called:
        ck.mix_feature_maps(maps, weight)
    assert called == ["crossmae_kernels::mix_feature_maps"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("mixes", "width"), [HELD, NOT_HELD])
def test_cuda_graphs_replay_the_kernels(problem, by, device, dtype, mixes, width):
    if device != "cuda":
        pytest.skip("no CUDA device")
    task = problem((8, 50), 13, mixes, width)
    leaves = {name: t for name, t in task.leaves(device, dtype).items() if t is not None}
    upstream = task.upstream.to(device, dtype)

    def step():
        out = by["kernels"]()(**leaves)
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
