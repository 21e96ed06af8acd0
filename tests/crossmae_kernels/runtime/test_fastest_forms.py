"""Forms of ops, chosen by measurement: kernels run for real, and a stand-in for the clock says how long they took."""

import json
from importlib import import_module

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import crossmae_kernels as ck
from crossmae_kernels.runtime import tuning
from crossmae_kernels.runtime.dispatch import form_of

ROWS, WIDTH, HIDDEN = 5, 16, 32
CALLS = {
    "mlp": lambda x, up, down: ck.mlp(x, None, None, up, None, down, None, impl="triton"),
    "norm_linear": lambda x, up, down: ck.norm_linear(x, up, None, activation="gelu", impl="triton"),
    "linear_residual": lambda x, up, down: ck.linear_residual(x, down @ up, None, x, impl="triton"),
}
# What each runs, with gradients.
MET = {"mlp": ["mlp", "mlp_backward"], "norm_linear": ["norm_linear"], "linear_residual": ["linear_residual"]}
CHOICES = [
    ("mlp", "single"),
    *((op, form) for op in CALLS for form in ("tiled", "library")),
]


def all_forms():
    """Of every op that has several. The modules need Triton, as an operator that runs does."""
    mlp, projection = (import_module(f"crossmae_kernels.{op}.kernels") for op in ("mlp", "projection"))
    return mlp._FORMS, mlp._BACKWARD_FORMS, projection._NORM_LINEAR, projection._LINEAR_RESIDUAL


class Clock:
    """Knows which forms ran, and says that one was the fastest."""

    def __init__(self, monkeypatch):
        self.ran, self.timed, self.fastest, self.failing = [], [], "library", {}
        for forms in all_forms():
            for name, form in forms.by_name.items():
                monkeypatch.setitem(forms.by_name, name, self.watched(forms.op, name, form))

    def watched(self, op, name, form):
        def run(*arguments):
            self.ran.append((op, name))
            if name in self.failing:
                raise self.failing[name]
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
    with tuning.tuning_mode("forms"):
        yield clock


def problem(device, rows=ROWS):
    """Input, weights up and down, float16."""
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN)
    drawn = (torch.randn(shape, generator=generator) / shape[1] ** 0.5 for shape in shapes)
    return [tensor.to(device, torch.float16).requires_grad_() for tensor in drawn]


def solved(op, arguments):
    """Output and gradients."""
    out = CALLS[op](*arguments)
    return [out, *torch.autograd.grad(out, arguments, torch.ones_like(out), allow_unused=True)]


def equal(ours, theirs):
    return all(a is b is None or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("op", "form"), CHOICES)
def test_each_form_is_timed_once_and_the_fastest_serves(clock, device, tmp_path, op, form):
    clock.fastest = form
    backward = "library" if form == "library" else "tiled"
    arguments = problem(device)
    of_op = [forms for forms in all_forms() if forms.op in MET[op]]
    every = [(forms.op, name) for forms in of_op for name in forms.by_name if name != "persistent"]
    for _ in range(2):
        found = solved(op, arguments)
        with form_of(op, form), form_of("mlp_backward", backward):
            assert equal(found, solved(op, arguments))
        assert sorted(clock.timed) == sorted(every)
    served = {name: form if name == op else backward for name in MET[op]}
    assert clock.ran == [*served.items()] * 4
    assert {file.name.split("-")[0] for file in tmp_path.iterdir()} == {f"forms.{name}" for name in MET[op]}
    # As another process finds it.
    tuning._known.clear()
    clock.fastest = ""
    assert equal(solved(op, arguments), found)
    assert len(clock.timed) == len(every)


def test_the_library_is_among_the_forms_of_every_product(clock, device):
    for op in CALLS:
        solved(op, problem(device))
    for forms in all_forms():
        assert (forms.op, "library") in clock.timed


def test_a_form_that_fails_is_passed_over(clock, device):
    from triton.runtime.errors import OutOfResources

    failing = {name: OutOfResources(2**18, 2**17, "shared memory") for forms in all_forms() for name in forms.by_name}
    clock.failing = failing | {"library": torch.OutOfMemoryError("full")}
    del clock.failing["tiled"]
    arguments = problem(device)
    with form_of("mlp", "tiled"), form_of("mlp_backward", "tiled"):
        expected = solved("mlp", arguments)
    assert equal(solved("mlp", arguments), expected)
    assert [*dict.fromkeys(clock.timed)] == [("mlp", "tiled"), ("mlp_backward", "tiled")]


def test_where_matrices_lie_is_part_of_the_key(clock, device, monkeypatch):
    """The fastest of matrices that descriptors can read may refuse others of the same shape."""
    clock.fastest = "persistent"
    x, up, down = problem(device)
    memory = torch.empty(HIDDEN * WIDTH + 1, dtype=up.dtype, device=device)
    shifted = memory[1:].view_as(up).copy_(up.detach()).requires_grad_()
    monkeypatch.setattr(tuning, "UNPROVEN", ())
    solved("norm_linear", (x, up, down))
    solved("norm_linear", (x, shifted, down))
    assert clock.ran == [("norm_linear", "persistent"), ("norm_linear", "tiled")]


def test_what_ran_on_no_gpu_yet_is_timed_where_all_is_asked_for_and_then_recalled(clock, device, monkeypatch):
    for product in ("gemm", "persistent_gemm"):  # but for tiles
        monkeypatch.setattr(
            import_module(f"crossmae_kernels.primitives.{product}"), "tunes_tiles", lambda tensor: False
        )
    clock.fastest = "persistent"
    arguments = problem(device)
    solved("norm_linear", arguments)
    assert clock.ran.pop() == ("norm_linear", "tiled")
    with tuning.tuning_mode("all"):
        tuning._known.clear()
        solved("norm_linear", arguments)
        assert clock.ran.pop() == ("norm_linear", "persistent")
    tuning._known.clear()
    solved("norm_linear", arguments)
    assert clock.ran.pop() == ("norm_linear", "persistent")


def test_a_form_that_cannot_serve_is_not_timed(clock, device):
    CALLS["mlp"](*(tensor.detach().float() for tensor in problem(device)))
    assert ("mlp", "library") in clock.timed
    assert ("mlp", "single") not in clock.timed


def test_a_call_that_the_fastest_form_refuses_takes_the_rules(clock, device, monkeypatch, tmp_path):
    x, up, down = (tensor.detach() for tensor in problem(device))
    clock.fastest = "tiled"
    CALLS["mlp"](x, up, down)
    (forms,) = (forms for forms in all_forms() if forms.op == "mlp")
    rows = []
    monkeypatch.setitem(forms.refusals, "tiled", lambda *arguments: rows.append(len(arguments[0])) or ["so many rows"])
    (file,) = tmp_path.iterdir()
    for _ in range(2):
        CALLS["mlp"](x[:4], up, down)
        assert clock.ran.pop() == ("mlp", "single")
        assert len(clock.timed) == len(forms.by_name) - len(tuning.UNPROVEN)
        assert json.loads(file.read_text())["milliseconds"][0][0] == "tiled"
        tuning._known.clear()  # recalled without it
    assert rows == [4, 4]


def test_an_error_of_the_device_is_not_passed_over(clock, device):
    clock.failing = {"library": RuntimeError("an illegal memory access was encountered")}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        CALLS["mlp"](*problem(device))


def test_nothing_is_timed_off_in_deterministic_mode_or_in_a_capture(clock, device, monkeypatch, tmp_path):
    arguments = problem(device)
    with tuning.tuning_mode("off"):
        expected = solved("mlp", arguments)
    torch.use_deterministic_algorithms(True)
    try:
        assert equal(solved("mlp", arguments), expected)
    finally:
        torch.use_deterministic_algorithms(False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert equal(solved("mlp", arguments), expected)
    assert clock.timed == []
    assert not [*tmp_path.iterdir()]
    solved("mlp", arguments)
    assert clock.timed


def test_tracing_times_nothing(clock, device):
    class Module(torch.nn.Module):
        def forward(self, x, up, down):
            return CALLS["mlp"](x, up, down)

    arguments = problem(device)
    torch.export.export(Module(), tuple(arguments))
    with FakeTensorMode() as mode:
        solved("mlp", [mode.from_tensor(tensor) for tensor in arguments])
    assert clock.ran == clock.timed == []
    compiled = torch.compile(CALLS["mlp"], fullgraph=True, backend="aot_eager")
    compiled(*arguments).sum().backward()  # compiled, and then run
    assert [*dict.fromkeys(name for name, _ in clock.timed)] == ["mlp", "mlp_backward"]
    assert [name for name, _ in clock.ran] == ["mlp", "mlp_backward"]


def test_what_a_choice_depends_on(clock, device):
    x, up, down = problem(device)
    calls = [
        lambda: CALLS["mlp"](x, up, down),
        lambda: CALLS["mlp"](x.detach(), up.detach(), down.detach()),  # nothing to keep
        lambda: ck.mlp(x, None, None, up, None, down, None, hidden="save", impl="triton"),
        lambda: CALLS["mlp"](*problem(device, rows=2 * ROWS)),
        lambda: ck.mlp(x, None, None, up[:16], None, down[:, :16], None, impl="triton"),
        lambda: CALLS["mlp"](*(tensor.float() for tensor in (x, up, down))),
    ]
    for call in calls:
        before = len(clock.timed)
        call()
        assert len(clock.timed) > before
        before = len(clock.timed)
        call()
        assert len(clock.timed) == before
    assert {finding.rows for finding in tuning.findings()} == {8, 16}


def test_records_are_plain(clock, device, tmp_path):
    solved("linear_residual", problem(device))
    (record,) = (json.loads(file.read_text()) for file in tmp_path.iterdir())
    assert record["milliseconds"][0] == ["library", 1.0]
    assert ["tiled", 2.0] in record["milliseconds"]
    assert record["thorough"] is False
    for part in ("'linear_residual'", "torch.Size([16, 16])", "torch.float16", "'3 bits of rows'"):
        assert part in record["key"]
