"""The kernels in every form against the definition in float64, with the error budget."""

import functools
from dataclasses import replace

import pytest
import torch
from oracles import oracle_of
from seeds import seeded

import crossmae_kernels as ck
from crossmae_kernels.testing import Draw, Judge, solve
from crossmae_kernels.testing.problems import in_form, mlp

EPS = 1e-3
# Leading dimensions, width, hidden width, policy, biases, norm's affine.
PROBLEMS = [
    ((3, 49), 96, 160, "save", True, True),
    ((147,), 96, 200, "recompute", False, True),
    ((9,), 256, 320, "recompute", True, False),
    ((1, 5), 512, 300, "recompute", True, True),
    ((7,), 768, 200, "save", False, False),
    # More row tiles than are grouped, and widths below every tile's.
    ((1100,), 24, 40, "recompute", True, True),
]
FORMS = ["single", "tiled", "persistent", "library"]


def served(form, width, hidden, dtype):
    """Whether the form takes the problem; float32 goes to the library, and in tiles of ours it takes long here."""
    if form == "single":
        return width <= 256 and dtype != torch.float32
    if form == "persistent":
        return hidden % 8 == 0 and dtype != torch.float32
    return form == "library" or width == 96 or dtype != torch.float32


@functools.cache
def judge_of(seed, shape, device, dtype):
    """What is right, and the budget, in every form."""
    problem = mlp(Draw(seed, device), *shape, eps=EPS)
    return Judge(problem, dtype, oracle_of(problem))


@pytest.mark.budget
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", PROBLEMS, ids=lambda s: f"{'x'.join(map(str, s[0]))}-{s[1]}-{s[2]}-{s[3]}")
def test_output_and_all_gradients_keep_to_the_budget(place, shape, form):
    device, dtype = place
    if not served(form, *shape[1:3], dtype):
        pytest.skip("not served in this form")
    judge = judge_of(seeded(), shape, device, dtype)
    with in_form(judge.problem, form).in_form():
        judge.check(judge.problem.by("triton"))


@pytest.mark.budget
@pytest.mark.parametrize("form", FORMS)
def test_large_values_neither_overflow_nor_vanish(place, form):
    device, dtype = place
    if form in ("single", "persistent") and dtype == torch.float32:
        pytest.skip("not served in this form")
    problem = in_form(mlp(Draw(seeded(), device), (20,), 48, 96, eps=EPS), form)
    x, bias = problem.arguments["x"], problem.arguments["fc1_bias"]
    problem = problem.having(x=100 * x + 50, fc1_bias=20 * bias)
    Judge(problem, dtype, oracle_of(problem)).check(problem.by("triton"))


def test_a_form_refuses_what_it_cannot_hold_with_every_reason(device):
    problem = in_form(mlp(Draw(device=device), (3,), 512, 16), "single")
    with pytest.raises(RuntimeError, match=r"it computes in 16 bits.*up to 256.*have 512"):
        solve(problem, problem.by("triton"), torch.float32)
    problem = replace(problem, forms={"mlp": "best"})
    with pytest.raises(RuntimeError, match="there is no such form, only single, tiled, persistent, library"):
        solve(problem, problem.by("triton"), torch.float32)


def test_shared_memory_decides_what_one_kernel_can_hold():
    from crossmae_kernels.mlp.config import single_refusals
    from crossmae_kernels.runtime.device import Limits

    assert single_refusals(256, torch.float16, Limits(86, 99 * 1024, 84)) == []
    assert "98304 bytes" in single_refusals(256, torch.float16, Limits(75, 64 * 1024, 40))[0]


def test_rows_too_wide_are_refused():
    x = torch.zeros(1, 16 * 1024 + 1)
    with pytest.raises(RuntimeError, match=r"normalise rows of up to 16384"):
        ck.mlp(x, None, None, x, None, x.t(), None, impl="triton")
