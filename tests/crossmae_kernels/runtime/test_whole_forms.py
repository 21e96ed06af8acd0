"""Kernels or PyTorch's operators, chosen by measurement: both run for real, and a stand-in for the clock decides."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck
from crossmae_kernels.feature_projection import project_keys_and_values
from crossmae_kernels.runtime import tuning
from crossmae_kernels.runtime.dispatch import default_implementation, form_of

MODULES = {
    "cross_attention": "cross_attention",
    "mix_feature_maps": "feature_mixing",
    "gather_patches": "patches",
    "patch_loss": "patches",
}
NAMES = {"patch_loss": "_LOSS", "gather_patches": "_GATHER"}
OPS = [*MODULES]
IDS = torch.tensor([[3, 0, 1], [2, 2, 0]])
HEADS, SIDE = 2, 2


def forms_of(op):
    return getattr(import_module(f"crossmae_kernels.{MODULES[op]}"), NAMES.get(op, "_FORMS"))


class Clock:
    """Knows which forms ran, and says that one was the fastest."""

    def __init__(self, monkeypatch):
        self.ran, self.timed, self.fastest = [], [], "pytorch"
        for op in OPS:
            forms = forms_of(op)
            for name, form in forms.by_name.items():
                monkeypatch.setitem(forms.by_name, name, self.watched(op, name, form))

    def watched(self, op, name, form):
        def run(*arguments):
            self.ran.append((op, name))
            return form(*arguments)

        return run

    def milliseconds(self, run):
        run()
        self.timed.append(self.ran.pop())
        return 1.0 if self.timed[-1][1] == self.fastest else 2.0


@pytest.fixture
def clock(monkeypatch, measured, device):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(tuning, "_milliseconds", clock.milliseconds)
    for module in {*MODULES.values(), "feature_projection"}:
        module = import_module(f"crossmae_kernels.{module}")

        def worthwhile(op, impl, refusals, worthwhile=True, cpu=False, choose=module.choose):
            return choose(op, impl, refusals, worthwhile=True)

        monkeypatch.setattr(module, "choose", worthwhile)  # the interpreter's CPU as if it were a GPU
    with tuning.tuning_mode("forms"):
        yield clock


def draw(device, *shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def problem(op, device, batch=2, dtype=torch.float32):
    """What needs gradients."""
    images = batch, 3, 2 * SIDE, 2 * SIDE
    shapes = {
        "cross_attention": ((4, 16), (batch, 5, 16), (batch, 5, 16)),
        "mix_feature_maps": ((2, 3), (2, 16), (2, 16), *[(batch, 5, 16)] * 3),
        "gather_patches": (images,),
        "patch_loss": ((batch, 3, 3 * SIDE**2),),
    }
    return draw(device, *shapes[op], dtype=dtype)


def ids_of(batch, device):
    return IDS.repeat(batch // 2, 1).to(device)


def targets(batch, device):
    return torch.linspace(-1, 1, batch * 48, device=device).view(batch, 3, 2 * SIDE, 2 * SIDE)


def call(op, arguments, impl="auto", ids=None):
    first = arguments[-1]
    ids = ids_of(len(first), first.device) if ids is None else ids
    if op == "cross_attention":
        return ck.cross_attention(*arguments, HEADS, ids, impl=impl)
    if op == "mix_feature_maps":
        weight, scale, shift, *maps = arguments
        return ck.mix_feature_maps(maps, weight, scale, shift, impl=impl)
    if op == "gather_patches":
        return ck.gather_patches(*arguments, ids, SIDE, impl=impl)
    return ck.patch_loss(*arguments, targets(len(first), first.device), ids, SIDE, True, impl=impl)


def defined(op, arguments):
    """The op by its definition, in float64."""
    ids = ids_of(len(arguments[-1]), arguments[-1].device)
    if op == "cross_attention":
        table, key, value = (tensor.double() for tensor in arguments)
        heads = [tensor.unflatten(-1, (HEADS, -1)) for tensor in (table[ids], key, value)]
        scores = torch.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]) / heads[0].shape[-1] ** 0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), heads[2]).flatten(2)
    if op == "mix_feature_maps":
        weight, scale, shift, *maps = (tensor.double() for tensor in arguments)
        mixes = torch.einsum("nk,kbte->nbte", weight, torch.stack(maps))
        return F.layer_norm(mixes, mixes.shape[-1:], eps=1e-6) * scale[:, None, None] + shift[:, None, None]
    images = (arguments[0] if op == "gather_patches" else targets(len(ids), ids.device)).double()
    patches = F.unfold(images, SIDE, stride=SIDE).unflatten(1, (3, SIDE**2)).permute(0, 3, 2, 1).flatten(2)
    rows = patches.gather(1, ids[..., None].expand(-1, -1, patches.shape[2]))
    if op == "gather_patches":
        return rows
    target = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, keepdim=True) + 1e-6).sqrt()
    return (arguments[0].double() - target).square().mean()


def solved(out, arguments):
    """Output and gradients; upstream gradients differ from place to place, as LayerNorm's of equal ones are zero."""
    upstream = torch.linspace(-1, 2, out.numel(), device=out.device, dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad(out, arguments, upstream)]


@pytest.mark.parametrize("fastest", ["kernels", "pytorch"])
@pytest.mark.parametrize("op", OPS)
def test_the_faster_serves_rightly(clock, device, tmp_path, op, fastest):
    clock.fastest = fastest
    arguments = problem(op, device)
    expected = solved(defined(op, arguments), arguments)
    for _ in range(2):
        for ours, theirs in zip(solved(call(op, arguments), arguments), expected, strict=True):
            torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)
        assert clock.timed == [(op, "kernels"), (op, "pytorch")]
    assert clock.ran == [(op, fastest)] * 2
    assert all(argument.grad is None for argument in arguments)
    (finding,) = tuning.findings()
    assert (finding.kernel, finding.kind, finding.rule, finding.best) == (op, "forms", "kernels", fastest)
    assert [file.name.split("-")[0] for file in tmp_path.iterdir()] == [f"forms.{op}"]
    # As another process finds it.
    tuning._known.clear()
    clock.fastest = ""
    call(op, arguments)
    assert clock.ran.pop() == (op, fastest)
    assert len(clock.timed) == 2


@pytest.mark.parametrize("op", OPS)
def test_only_calls_that_leave_it_open_may_take_pytorch(clock, device, op):
    arguments = problem(op, device)
    call(op, arguments, impl="triton")
    with default_implementation("triton"):
        call(op, arguments)
    with form_of(op, "kernels"):
        call(op, arguments)
    assert clock.timed == []
    assert clock.ran == [(op, "kernels")] * 3
    with form_of(op, "pytorch"):
        call(op, arguments)
    assert clock.ran.pop() == (op, "pytorch")


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_timed_without_budget_off_in_deterministic_mode_or_in_a_capture(
    clock, device, monkeypatch, tmp_path, op
):
    arguments = problem(op, device)
    with tuning.tuning_mode("off"):
        call(op, arguments)
    with tuning.tuning_mode("recall"):
        call(op, arguments)
    torch.use_deterministic_algorithms(True)
    try:
        call(op, arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        call(op, arguments)
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_spent", tuning.BUDGET_SECONDS)
        call(op, problem(op, device, batch=4))
    assert clock.timed == []
    assert clock.ran == [(op, "kernels")] * 5
    assert not [*tmp_path.iterdir()]
    call(op, arguments)
    assert clock.ran.pop() == (op, "pytorch")


@pytest.mark.parametrize("op", OPS)
def test_tracing_takes_kernels_and_times_nothing(clock, device, op):
    arguments = problem(op, device)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        call(op, [mode.from_tensor(tensor) for tensor in arguments])
    compiled = torch.compile(lambda *tensors: call(op, tensors), fullgraph=True, backend="aot_eager")
    compiled(*arguments).sum().backward()
    assert clock.timed == []
    assert {form for _, form in clock.ran} <= {"kernels"}


@pytest.mark.parametrize("op", OPS)
def test_what_a_choice_depends_on(clock, device, op):
    arguments = problem(op, device)
    calls = [
        lambda: call(op, arguments),
        lambda: call(op, [tensor.detach() for tensor in arguments]),
        lambda: call(op, problem(op, device, batch=4)),
        lambda: call(op, problem(op, device, dtype=torch.float16)),
    ]
    for place, one in enumerate(calls, 1):
        for _ in range(2):
            one()
            assert len(clock.timed) == 2 * place
    with torch.no_grad():
        call(op, arguments)  # as without gradients
    assert len(clock.timed) == 2 * len(calls)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("op", ["cross_attention", "gather_patches", "patch_loss"])
def test_ids_out_of_range_give_nan_by_pytorch_too(clock, device, monkeypatch, op):
    """As on a GPU, where no check reads them."""
    monkeypatch.setattr("crossmae_kernels.runtime.checks._readable", lambda tensor: False)
    arguments = problem(op, device)
    ids = ids_of(2, device)
    ids[0, 1], ids[1, 2] = -1, 4
    found = []
    for form in ("kernels", "pytorch"):
        with form_of(op, form):
            found.append(solved(call(op, arguments, ids=ids), arguments))
    assert found[1][0].isnan().any()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("op", OPS)
def test_results_have_one_dtype_under_autocast(clock, device, op):
    arguments = problem(op, device)
    found = []
    for form in ("kernels", "pytorch"):
        with form_of(op, form), torch.autocast(device, torch.bfloat16):
            found.append(call(op, arguments))
    assert found[0].dtype == found[1].dtype
    torch.testing.assert_close(*found, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("fastest", ["kernels", "pytorch"])
def test_a_measurement_within_a_checkpoint_leaves_it_alone(clock, device, fastest):
    """It counts what is saved, and refuses to recompute anything else."""
    clock.fastest = fastest
    arguments = problem("cross_attention", device)
    expected = solved(call("cross_attention", arguments, impl="triton"), arguments)
    out = checkpoint(lambda *tensors: call("cross_attention", tensors), *arguments, use_reentrant=False)
    assert clock.timed
    for ours, theirs in zip(solved(out, arguments), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("project", [ck.project_feature_maps, project_keys_and_values])
def test_projections_of_maps_choose_their_mixing(clock, device, project):
    weight, scale, shift, *maps = problem("mix_feature_maps", device)
    weights, biases = draw(device, (32, 16), (32, 16)), draw(device, (32,), (32,))
    project(maps, weight, scale, shift, weights, biases)
    assert clock.ran == [("mix_feature_maps", "pytorch")]
    clock.ran.clear()
    project(maps, weight, scale, shift, weights, biases, impl="triton")
    assert clock.ran == [("mix_feature_maps", "kernels")]


def test_nothing_is_timed_without_images(clock, device):
    prediction, images = draw(device, (0, 3, 3 * SIDE**2), (0, 3, 2 * SIDE, 2 * SIDE))
    ids = torch.empty(0, 3, dtype=torch.int64, device=device)
    assert ck.patch_loss(prediction, images.detach(), ids, SIDE, True, reduction="none").shape == (0, 3)
    assert clock.ran == [("patch_loss", "kernels")]
    assert not clock.timed
