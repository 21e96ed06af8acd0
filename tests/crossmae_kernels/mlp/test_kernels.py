"""The kernels in every form against the definition in float64, with the error budget."""

import pytest
import torch
from problems import same

import crossmae_kernels as ck
from crossmae_kernels.runtime.dispatch import form_of
from crossmae_kernels.testing import poisoned_allocations

# Leading dimensions, width, hidden width, biases, norm's affine.
PROBLEMS = [
    ((3, 49), 96, 160, True, True),
    ((147,), 96, 200, False, True),
    ((1,), 192, 384, True, True),
    ((2, 9), 256, 320, True, False),
    ((49,), 320, 200, True, True),
    ((1, 5), 512, 300, True, True),
    ((7,), 768, 200, False, False),
    # More row tiles than are grouped, and widths below every tile's.
    ((1100,), 20, 35, True, True),
]
FORMS = ["single", "tiled", "library"]


def served(form, width, dtype):
    """Whether the form takes the problem; float32 goes to the library, and in tiles of ours it takes long here."""
    if form == "single":
        return width <= 256 and dtype != torch.float32
    return form == "library" or width == 96 or dtype != torch.float32


@pytest.mark.budget
@pytest.mark.parametrize("form_name", FORMS)
@pytest.mark.parametrize("shape", PROBLEMS, ids=lambda s: f"{'x'.join(map(str, s[0]))}-{s[1]}-{s[2]}")
def test_output_and_all_gradients_keep_to_the_budget_with_either_policy(problem, by, form, place, shape, form_name):
    rows, width, hidden, biases, norm = shape
    device, dtype = place
    if not served(form_name, width, dtype):
        pytest.skip("not served in this form")
    task = problem(rows, width, hidden, biases, norm)
    # Both policies run the same code for many rows and for few.
    policies = [by["kernels"](policy) for policy in (("recompute",) if rows[0] > 100 else ("recompute", "save"))]
    with form(form_name):
        task.judge(policies, by["eager"], by["oracle"], device, dtype)


@pytest.mark.budget
@pytest.mark.parametrize("form_name", FORMS)
def test_a_stream_in_float32_beside_products_in_16_bits(problem, by, form, device, form_name):
    task = problem((2, 33), 96, 192)
    for compute in (torch.float16, *([torch.bfloat16] if device == "cuda" else [])):
        with form(form_name):
            found = task.judge([by["kernels"]()], by["eager"], by["oracle"], device, torch.float32, compute)
        assert all(result.dtype == torch.float32 for result in found.values())


@pytest.mark.budget
@pytest.mark.parametrize("form_name", FORMS)
def test_large_values_neither_overflow_nor_vanish(problem, by, form, place, form_name):
    device, dtype = place
    if form_name == "single" and dtype == torch.float32:
        pytest.skip("not served in this form")
    task = problem((20,), 48, 96)
    task.arguments["x"] = 100 * task.arguments["x"] + 50
    task.arguments["fc1_bias"] = 20 * task.arguments["fc1_bias"]
    with form(form_name):
        task.judge([by["kernels"]()], by["eager"], by["oracle"], device, dtype)


@pytest.mark.parametrize("form_name", FORMS)
def test_results_repeat_bitwise(problem, by, form, device, form_name):
    task = problem((150,), 48, 96)
    with form(form_name):
        assert same(*(task.solve(by["kernels"](), device, torch.float16) for _ in range(2)))


@pytest.mark.parametrize("form_name", FORMS)
@pytest.mark.parametrize("policy", ["save", "recompute"])
def test_a_second_backward_equals_the_first_and_leaves_saved_tensors_alone(
    problem, by, form, device, form_name, policy
):
    task = problem((2, 10), 32, 64)
    leaves = task.leaves(device, torch.float16)
    before = [t.detach().clone() for t in leaves.values()]
    saved = []
    with form(form_name):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append((t, t.clone())) or t, lambda t: t):
            out = by["kernels"](policy)(**leaves)
        upstream = task.upstream.to(device, torch.float16)
        first = torch.autograd.grad(out, list(leaves.values()), upstream, retain_graph=True)
        second = torch.autograd.grad(out, list(leaves.values()), upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a.detach(), b) for a, b in zip(leaves.values(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in saved)


@pytest.mark.parametrize("form_name", ["tiled", "library"])
@pytest.mark.parametrize(
    "wanted",
    [("x",), ("fc1_weight",), ("fc1_bias",), ("fc2_weight",), ("fc2_bias",), ("norm_weight", "fc2_bias")],
    ids="+".join,
)
def test_frozen_arguments_get_no_gradient_and_change_no_other(problem, by, form, device, form_name, wanted):
    task = problem((20,), 32, 64)
    with form(form_name):
        everything = task.solve(by["kernels"](), device, torch.float32)
        some = task.solve(by["kernels"](), device, torch.float32, frozen=set(task.arguments) - set(wanted))
    assert set(some) == {"out", *(f"d {name}" for name in wanted)}
    assert all(torch.equal(some[name], everything[name]) for name in some)


LAYOUTS = {
    "slice": lambda t: torch.cat([t, t], -1).chunk(2, -1)[1],
    "first dimension last": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: t.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("form_name", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_nothing(problem, by, form, device, form_name, layout):
    task = problem((3, 7), 32, 48)

    def strided(**arguments):
        return by["kernels"]()(**{name: LAYOUTS[layout](t) for name, t in arguments.items()})

    with form(form_name):
        assert same(
            task.solve(strided, device, torch.float16), task.solve(by["kernels"](), device, torch.float16)
        )  # fmt: skip


@pytest.mark.parametrize("upstream", [(1, 1, 1), (2, 1, 32), (1, 7, 32)], ids=str)
def test_expanded_upstream_gradients(problem, by, form, device, upstream):
    task = problem((2, 7), 32, 48)
    for form_name in ("tiled", "library"):
        leaves = task.leaves(device, torch.float16)
        gradient = torch.randn(upstream, device=device).half().expand(2, 7, 32)
        with form(form_name):
            out = by["kernels"]()(**leaves)
            expanded = torch.autograd.grad(out, list(leaves.values()), gradient, retain_graph=True)
            dense = torch.autograd.grad(out, list(leaves.values()), gradient.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


@pytest.mark.parametrize("form_name", FORMS)
@pytest.mark.parametrize("policy", ["save", "recompute"])
def test_no_rows(problem, by, form, device, form_name, policy):
    task = problem((0, 5), 32, 48)
    with poisoned_allocations(), form(form_name):
        found = task.solve(by["kernels"](policy), device, torch.float16)
    assert found["out"].shape == (0, 5, 32)
    assert not any(result.any() for result in found.values())


def test_a_form_refuses_what_it_cannot_hold_with_every_reason(problem, by, device):
    with form_of("mlp", "single"), pytest.raises(RuntimeError, match=r"it computes in 16 bits.*up to 256.*have 512"):
        problem((3,), 512, 16).solve(by["kernels"](), device, torch.float32)
    with (
        form_of("mlp", "best"),
        pytest.raises(RuntimeError, match="there is no such form, only single, tiled, library"),
    ):
        problem((3,), 32, 16).solve(by["kernels"](), device, torch.float32)


def test_shared_memory_decides_what_one_kernel_can_hold():
    from crossmae_kernels.mlp.config import single_refusals

    assert single_refusals(256, torch.float16, 99 * 1024) == []
    assert "98304 bytes" in single_refusals(256, torch.float16, 64 * 1024)[0]


def test_rows_too_wide_are_refused():
    x = torch.zeros(1, 16 * 1024 + 1)
    with pytest.raises(RuntimeError, match=r"normalise rows of up to 16384"):
        ck.mlp(x, None, None, x, None, x.t(), None, impl="triton")
