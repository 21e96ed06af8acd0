"""The kernels in every form against the definitions in float64, with the error budget."""

import pytest
import torch
from problems import same

from crossmae_kernels.runtime.dispatch import form_of
from crossmae_kernels.testing import poisoned_allocations

FORMS = ["tiled", "library"]

# Leading dimensions, inner and outer width, biases, the norm's affine, activation.
NORM_LINEAR = [
    ((3, 49), 96, 288, True, True, None),
    ((147,), 192, 192, False, True, "gelu"),
    ((1,), 256, 256, True, True, "gelu"),
    ((7,), 384, 130, True, False, None),
    ((1, 9), 512, 96, True, True, "gelu"),
    ((5,), 768, 64, False, False, None),
    ((1100,), 20, 35, True, True, "gelu"),
]

# Leading dimensions, inner and outer width, biases, rows of the table (0: a dense residual).
LINEAR_RESIDUAL = [
    ((3, 49), 96, 96, True, 0),
    ((3, 49), 96, 192, True, 20),
    ((1, 1), 256, 256, False, 1),
    ((2, 9), 512, 100, True, 40),
    ((17,), 768, 64, True, 0),
    ((2, 550), 20, 35, False, 7),
]


@pytest.mark.budget
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", NORM_LINEAR, ids=lambda s: f"{'x'.join(map(str, s[0]))}-{s[1]}-{s[2]}-{s[5]}")
def test_norm_linear_and_all_gradients_keep_to_the_budget(problems, by, place, shape, form):
    *sizes, activation = shape
    task, solvers = problems["norm_linear"](*sizes), [by["norm_linear"][who](activation) for who in by["norm_linear"]]
    with form_of("norm_linear", form):
        task.judge(solvers[:1], *solvers[1:], *place)


@pytest.mark.budget
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", LINEAR_RESIDUAL, ids=lambda s: f"{'x'.join(map(str, s[0]))}-{s[1]}-{s[2]}-{s[4]}")
def test_linear_residual_and_all_gradients_keep_to_the_budget(problems, by, ids_of, place, shape, form):
    rows, *_, table = shape
    device, dtype = place
    ids = ids_of(rows, table, torch.int32 if table % 2 else torch.int64)
    here = None if ids is None else ids.to(device)
    task, solvers = problems["linear_residual"](*shape), by["linear_residual"]
    with form_of("linear_residual", form):
        task.judge([solvers["kernels"](here)], solvers["eager"](here), solvers["oracle"](ids), device, dtype)


@pytest.mark.budget
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("op", "table"), [("norm_linear", 0), ("linear_residual", 0), ("linear_residual", 9)])
def test_a_stream_in_float32_beside_products_in_16_bits(problems, by, ids_of, device, op, table, form):
    ids = ids_of((2, 33), table)
    options = {"table": table} if table else {}
    how = {"kernels": ids, "eager": ids, "oracle": ids} if op == "linear_residual" else dict.fromkeys(by[op], "gelu")
    task = problems[op]((2, 33), 96, 64, **options)
    for compute in (torch.float16, *([torch.bfloat16] if device == "cuda" else [])):
        kernels, eager, oracle = (
            by[op][who](option.to(device) if who != "oracle" and isinstance(option, torch.Tensor) else option)
            for who, option in how.items()
        )
        with form_of(op, form):
            found = task.judge([kernels], eager, oracle, device, torch.float32, compute)
        assert found["out"].dtype == (compute if op == "norm_linear" else torch.float32)


CASES = [("norm_linear", None), ("norm_linear", "gelu"), ("linear_residual", 0), ("linear_residual", 6)]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[1]}")
def case(request, problems, by, ids_of, device):
    """An op, a small problem and the kernels that solve it."""
    op, option = request.param
    if op == "norm_linear":
        return op, problems[op]((3, 7), 32, 48), by[op]["kernels"](option)
    ids = ids_of((3, 7), option)
    task = problems[op]((3, 7), 32, 48, table=option)
    return op, task, by[op]["kernels"](None if ids is None else ids.to(device))


@pytest.mark.parametrize("form", FORMS)
def test_results_repeat_bitwise(case, form, device):
    op, task, kernels = case
    with form_of(op, form):
        assert same(*(task.solve(kernels, device, torch.float16) for _ in range(2)))


@pytest.mark.parametrize("form", FORMS)
def test_a_second_backward_equals_the_first_and_leaves_saved_tensors_alone(case, form, device):
    op, task, kernels = case
    leaves = task.leaves(device, torch.float16)
    before = [t.detach().clone() for t in leaves.values()]
    saved = []
    with form_of(op, form):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append((t, t.clone())) or t, lambda t: t):
            out = kernels(**leaves)
        upstream = task.upstream.to(device, torch.float16)
        first = torch.autograd.grad(out, list(leaves.values()), upstream, retain_graph=True)
        second = torch.autograd.grad(out, list(leaves.values()), upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a.detach(), b) for a, b in zip(leaves.values(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in saved)


def test_frozen_arguments_get_no_gradient_and_change_no_other(case, device):
    _, task, kernels = case
    everything = task.solve(kernels, device, torch.float32)
    names = list(task.arguments)
    for wanted in (*([name] for name in names), names[:2], names[1:]):
        some = task.solve(kernels, device, torch.float32, frozen=set(names) - set(wanted))
        assert set(some) == {"out", *(f"d {name}" for name in wanted)}
        assert all(torch.equal(some[name], everything[name]) for name in some)


LAYOUTS = {
    "slice": lambda t: torch.cat([t, t], -1).chunk(2, -1)[1],
    "first dimension last": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: t.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_nothing(case, form, layout, device):
    op, task, kernels = case

    def strided(**arguments):
        return kernels(**{name: LAYOUTS[layout](t) for name, t in arguments.items()})

    with form_of(op, form):
        assert same(*(task.solve(call, device, torch.float16) for call in (strided, kernels)))


@pytest.mark.parametrize("upstream", [(1, 1, 1), (3, 1, 48), (1, 7, 48)], ids=str)
def test_expanded_upstream_gradients(case, upstream, device):
    _, task, kernels = case
    leaves = task.leaves(device, torch.float16)
    gradient = torch.randn(upstream, device=device).half().expand(3, 7, 48)
    out = kernels(**leaves)
    expanded = torch.autograd.grad(out, list(leaves.values()), gradient, retain_graph=True)
    dense = torch.autograd.grad(out, list(leaves.values()), gradient.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("op", "option"), CASES)
def test_no_rows(problems, by, device, op, option, form):
    if op == "norm_linear":
        task, kernels = problems[op]((0, 7), 32, 48), by[op]["kernels"](option)
    else:
        task = problems[op]((0, 7), 32, 48, table=option)
        ids = torch.zeros(0, 7, dtype=torch.int64, device=device) if option else None
        kernels = by[op]["kernels"](ids)
    with poisoned_allocations(), form_of(op, form):
        found = task.solve(kernels, device, torch.float16)
    assert found["out"].shape == (0, 7, 48)
    assert not any(result.any() for result in found.values())


@pytest.mark.parametrize("form", FORMS)
def test_rows_with_ids_out_of_range_are_not_read_and_show_as_nan(problems, ids_of, device, form):
    # Straight to the operator: on a CPU the public function would raise.
    task, ids = problems["linear_residual"]((2, 5), 32, 48, table=4), ids_of((2, 5), 4).to(device)
    x, weight, bias, table = (t.detach() for t in task.leaves(device, torch.float32).values())
    with form_of("linear_residual", form):
        good = torch.ops.crossmae_kernels.linear_residual(x, weight, bias, table, ids)
        ids = ids.clone()
        ids[0, 1], ids[1, 3] = -1, 4
        bad = torch.ops.crossmae_kernels.linear_residual(x, weight, bias, table, ids)
    lost = torch.zeros_like(bad, dtype=torch.bool)
    lost[0, 1] = lost[1, 3] = True
    assert torch.equal(bad.isnan(), lost)
    assert torch.equal(bad[~lost], good[~lost])


@pytest.mark.parametrize("op", ["norm_linear", "linear_residual"])
def test_rows_beyond_2_to_the_31_are_found(problems, by, device, op):
    """The memory between the rows is reserved but never touched."""
    arguments = problems[op]((3,), 16, 8).leaves(device, torch.float16)
    memory = torch.empty(2 * 2**30 + 16, dtype=torch.float16, device=device)
    with torch.no_grad():
        far = arguments | {"x": memory.as_strided((3, 16), (2**30, 1)).copy_(arguments["x"])}
        assert torch.equal(by[op]["kernels"]()(**far), by[op]["kernels"]()(**arguments))
