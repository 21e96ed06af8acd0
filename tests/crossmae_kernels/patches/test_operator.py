"""The operators inside of PyTorch: registration, compilation, autocast, checkpointing, memory."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck
from crossmae_kernels.runtime.dispatch import default_implementation

OPS = torch.ops.crossmae_kernels


def _gather(images, ids, *statistics):
    return ck.gather_patches(images, ids, 5, *statistics, impl="triton")


def _loss(prediction, images, ids, *statistics):
    return ck.patch_loss(prediction, images, ids, 5, True, *statistics, impl="triton")


@pytest.fixture
def arguments(problem, device):
    """Prediction, a leaf; images, ids, mean and std."""

    def make(pixels=torch.float32, **others):
        task = problem(5, pixels=pixels, **others)
        return task.prediction.to(device, torch.float32).requires_grad_(), *task.arguments(device, torch.float32)

    return make


# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_opcheck(arguments, pixels):
    prediction, images, ids, mean, std = arguments(pixels)
    losses = torch.rand(ids.shape, device=ids.device)
    calls = [
        (OPS.gather_patches, (images, ids, mean, std, 5, torch.float16)),
        (OPS.gather_patches_backward, (prediction.detach(), ids, images.shape, 5, torch.float16)),
        (OPS.patch_loss, (prediction, images, ids, mean, std, 5, True, True)),
        (OPS.patch_loss, (prediction.detach(), images, ids, mean, std, 5, False, False)),
        (OPS.patch_loss_backward, (losses.t().contiguous().t(), prediction.detach())),
    ]
    if pixels == torch.float32:
        calls.append((OPS.gather_patches, (images.clone().requires_grad_(), ids, None, None, 5, torch.float32)))
    for operator, given in calls:
        assert set(torch.library.opcheck(operator, given).values()) == {"SUCCESS"}


def _gradients(call, *given):
    out = call(*given)
    return [out.detach(), *torch.autograd.grad(out.sum(), [t for t in given if t is not None and t.requires_grad])]


def _equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("call", [_gather, _loss])
def test_whole_graph_compiles_with_its_gradients_and_once_for_all_counts(arguments, device, call):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager" if device == "cpu" else "inductor")
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    for batch, count in ((2, 4), (3, 5), (5, 3)):
        prediction, images, ids, _, _ = arguments(batch=batch, count=count)
        given = (images.requires_grad_(), ids) if call is _gather else (prediction, images, ids)
        # The mean is PyTorch's own, which a compiler may sum in another order.
        torch.testing.assert_close(_gradients(compiled, *given), _gradients(call, *given), rtol=1e-6, atol=1e-7)
    # The first size as such, the second as any size.
    assert counter.frame_count == 2


class _Operators(TorchDispatchMode):
    """Names of this package's operators as they are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "crossmae_kernels":
            self.names.append(func.name().removeprefix("crossmae_kernels::"))
        return func(*args, **(kwargs or {}))


def test_one_operator_per_call(arguments):
    prediction, images, ids, _, _ = arguments()
    with _Operators() as called:
        loss = _loss(prediction, images, ids)
        loss.backward()
        _gather(images.requires_grad_(), ids).sum().backward()
    assert called.names == ["patch_loss", "patch_loss_backward", "gather_patches", "gather_patches_backward"]


class _Casts(TorchDispatchMode):
    """Copies to another dtype."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_autocast_gets_its_rows_straight_from_the_kernel(arguments, device, pixels):
    _, images, ids, mean, std = arguments(pixels)
    rows = _gather(images, ids, mean, std)
    assert rows.dtype == torch.float32
    with torch.autocast(device, torch.float16), _Casts() as casts:
        low = _gather(images, ids, mean, std)
    assert casts.count == 0
    assert low.dtype == torch.float16
    assert torch.equal(low, rows.half())


def test_gradients_through_rows_in_another_dtype_come_in_that_of_the_images(arguments, device):
    _, images, ids, _, _ = arguments()
    images.requires_grad_()
    with torch.autocast(device, torch.float16):
        rows = _gather(images, ids)
    upstream = torch.randn_like(rows)
    (gradient,) = torch.autograd.grad(rows, images, upstream)
    (expected,) = torch.autograd.grad(_gather(images, ids), images, upstream.float())
    assert torch.equal(gradient, expected)


@pytest.mark.usefixtures("bfloat16_anywhere")
def test_autocast_may_be_bfloat16(arguments, device, monkeypatch):
    from crossmae_kernels.patches import launch

    # Not the kernel: the interpreter cannot tell bfloat16.
    monkeypatch.setattr(launch, "gather_forward", lambda *given: torch.empty(0, dtype=given[-1], device=device))
    _, images, ids, _, _ = arguments()
    with torch.autocast(device, torch.bfloat16):
        assert _gather(images, ids).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_leaves_the_loss_alone(arguments, device, dtype):
    prediction, images, ids, _, _ = arguments()
    prediction = prediction.detach().to(dtype).requires_grad_()
    expected = _gradients(_loss, prediction, images, ids)
    with torch.autocast(device, torch.float16), _Casts() as casts:
        loss = _loss(prediction, images, ids)
    assert casts.count == 0
    assert loss.dtype == torch.float32
    assert _equal([loss.detach(), *torch.autograd.grad(loss, prediction)], expected)


def test_activation_checkpointing(arguments):
    prediction, images, ids, _, _ = arguments()
    checkpointed = partial(checkpoint, _loss, use_reentrant=False)
    assert _equal(_gradients(checkpointed, prediction, images, ids), _gradients(_loss, prediction, images, ids))
    images.requires_grad_()
    checkpointed = partial(checkpoint, _gather, use_reentrant=False)
    assert _equal(_gradients(checkpointed, images, ids), _gradients(_gather, images, ids))


def test_what_is_kept_for_the_backward_pass(arguments):
    prediction, images, ids, _, _ = arguments()
    prediction = prediction.detach().half().requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _loss(prediction, images, ids)
    assert [(t.shape, t.dtype) for t in saved] == [(prediction.shape, torch.float16)]
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _gather(images.requires_grad_(), ids)
    assert [t.data_ptr() for t in saved] == [ids.data_ptr()]


def test_nothing_is_kept_where_nobody_asks_for_gradients(arguments):
    prediction, images, ids, _, _ = arguments()
    _, kept = OPS.patch_loss(prediction.detach(), images, ids, None, None, 5, True, False)
    assert kept.numel() == 0
    with torch.no_grad():
        frozen = _loss(prediction, images, ids)
    assert not frozen.requires_grad
    assert not _loss(prediction.detach(), images, ids).requires_grad
    assert torch.equal(frozen, _loss(prediction, images, ids).detach())


class _Allocations(TorchDispatchMode):
    """Bytes of every storage that is new."""

    def __init__(self, *inputs):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in inputs}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.known.add(tensor.untyped_storage().data_ptr())
                self.bytes += tensor.untyped_storage().nbytes()
        return out


def test_no_patch_is_ever_stored_but_those_asked_for(interpreter, problem):
    from crossmae_kernels.patches import launch

    task = problem(8, count=2, grid=(4, 4))
    images, ids, _, _ = task.arguments("cpu", torch.float32)
    prediction, losses = task.prediction.float(), task.upstream_losses.float()
    rows = prediction.numel() * 4
    for bound, call, given in (
        (rows, launch.gather_forward, (images, ids, None, None, 8, torch.float32)),
        (images.numel() * 4, launch.gather_backward, (prediction, ids, images.shape, 8, torch.float32)),
        (rows + 4 * ids.numel(), launch.loss_forward, (prediction, images, ids, None, None, 8, True, True)),
        (4 * ids.numel(), launch.loss_forward, (prediction, images, ids, None, None, 8, True, False)),
        (rows, launch.loss_backward, (losses, prediction)),
    ):
        with _Allocations(*(t for t in given if isinstance(t, torch.Tensor))) as allocated:
            call(*given)
        assert allocated.bytes == bound


def test_gradients_to_images_through_the_loss_are_the_reference_s(arguments):
    prediction, images, ids, _, _ = arguments()
    images.requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient to the images"):
        _loss(prediction, images, ids)
    loss = ck.patch_loss(prediction, images, ids, 5, True)
    assert torch.autograd.grad(loss, images)[0].abs().max() > 0
    with torch.no_grad():
        assert torch.isfinite(_loss(prediction, images, ids))
    losses, _ = OPS.patch_loss(prediction, images, ids, None, None, 5, True, True)
    with pytest.raises(NotImplementedError, match="no gradient to the images"):
        losses.sum().backward()


def test_gradients_to_statistics_are_the_reference_s(arguments):
    prediction, images, ids, mean, std = arguments(torch.uint8)
    for call, given in ((_gather, (images, ids)), (_loss, (prediction, images, ids))):
        with pytest.raises(RuntimeError, match="no gradient to mean and std"):
            call(*given, mean, std.clone().requires_grad_())


def test_patches_that_do_not_fit_are_the_reference_s(device):
    images = torch.randn(1, 3, 72, 72, device=device)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match=r"up to 16384 values.*3 x 72 x 72"):
        ck.gather_patches(images, ids, 72, impl="triton")
    assert torch.equal(ck.gather_patches(images, ids, 72)[0, 0], images[0].permute(1, 2, 0).flatten())


def test_second_derivatives(arguments):
    prediction, images, ids, _, _ = arguments()
    (gradient,) = torch.autograd.grad(_loss(prediction, images, ids), prediction, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()
    images.requires_grad_()
    weight = torch.randn_like(prediction, requires_grad=True)
    found = []
    for impl in ("triton", "reference"):
        rows = ck.gather_patches(images, ids, 5, impl=impl)
        (gradient,) = torch.autograd.grad(rows, images, weight, create_graph=True)
        found += torch.autograd.grad((gradient * images.detach()).sum(), weight)
    assert torch.equal(*found)


def test_process_wide_default_reaches_the_kernels(arguments, device, monkeypatch):
    from crossmae_kernels.patches import launch

    launched = []
    for name in ("gather_forward", "loss_forward"):
        kernel = getattr(launch, name)
        monkeypatch.setattr(launch, name, lambda *a, kernel=kernel: launched.append(1) or kernel(*a))
    prediction, images, ids, _, _ = arguments()

    def both(**impl):
        launched.clear()
        ck.gather_patches(images, ids, 5, **impl)
        ck.patch_loss(prediction, images, ids, 5, False, **impl)
        return len(launched)

    assert both(impl="reference") == 0
    assert both() == (2 if device == "cuda" else 0)
    with default_implementation("triton"):
        assert both() == 2


@pytest.mark.gpu
def test_cuda_graphs_replay_the_kernels(problem, device):
    if device != "cuda":
        pytest.skip("no CUDA device")
    task = problem(16, pixels=torch.uint8)
    images, ids, mean, std = task.arguments(device, torch.float16)
    prediction = task.prediction.to(device, torch.float16).requires_grad_()

    def step():
        loss = ck.patch_loss(prediction, images, ids, 16, True, mean, std, impl="triton")
        rows = ck.gather_patches(images, ids, 16, mean, std, impl="triton")
        return [rows, loss, *torch.autograd.grad(loss, prediction)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = [t.detach().clone() for t in step()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert _equal(captured, expected)
