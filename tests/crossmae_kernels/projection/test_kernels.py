"""The kernels in every form against the definitions in float64, with the error budget."""

import functools

import pytest
import torch
from oracles import oracle_of
from seeds import seeded

from crossmae_kernels.testing import Draw, Judge
from crossmae_kernels.testing.problems import in_form, linear_residual, norm_linear

FORMS = ["tiled", "persistent", "library"]

# Leading dimensions, inner and outer width, activation, biases, the norm's affine.
NORM_LINEAR = [
    ((3, 49), 96, 288, None, True, True),
    ((147,), 192, 130, "gelu", False, True),
    ((1,), 256, 256, "gelu", True, True),
    ((7,), 384, 130, None, True, False),
    ((1, 9), 512, 96, "gelu", True, True),
    ((5,), 768, 64, None, False, False),
    ((1100,), 24, 35, "gelu", True, True),
]

# Leading dimensions, inner and outer width, biases, rows of the table (0: a dense residual).
LINEAR_RESIDUAL = [
    ((3, 49), 96, 96, True, 0),
    ((3, 49), 96, 192, True, 20),
    ((1, 1), 256, 256, False, 1),
    ((2, 9), 512, 100, True, 40),
    ((17,), 768, 64, True, 0),
    ((2, 550), 24, 35, False, 7),
]


@functools.cache
def judge_of(seed, build, shape, device, dtype):
    """What is right, and the budget, in every form."""
    problem = build(Draw(seed, device), *shape)
    if "residual_ids" in problem.arguments and shape[-1] % 2:
        problem = problem.having(residual_ids=problem.arguments["residual_ids"].int())
    return Judge(problem, dtype, oracle_of(problem))


def judge(form, *problem):
    if form == "persistent" and problem[-1] == torch.float32:
        pytest.skip("not served in this form")
    judge = judge_of(seeded(), *problem)
    with in_form(judge.problem, form).in_form():
        judge.check(judge.problem.by("triton"))


@pytest.mark.budget
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", NORM_LINEAR, ids=lambda s: f"{'x'.join(map(str, s[0]))}-{s[1]}-{s[2]}-{s[3]}")
def test_norm_linear_and_all_gradients_keep_to_the_budget(place, shape, form):
    judge(form, norm_linear, (*shape, 1e-3), *place)


@pytest.mark.budget
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", LINEAR_RESIDUAL, ids=lambda s: f"{'x'.join(map(str, s[0]))}-{s[1]}-{s[2]}-{s[4]}")
def test_linear_residual_and_all_gradients_keep_to_the_budget(place, shape, form):
    judge(form, linear_residual, shape, *place)


@pytest.mark.parametrize("problem", [norm_linear, linear_residual])
def test_rows_beyond_2_to_the_31_are_found(device, problem):
    """The memory between the rows is reserved but never touched."""
    problem = problem(Draw(device=device), (3,), 16, 8)
    arguments = problem.leaves(torch.float16)
    memory = torch.empty(2 * 2**30 + 16, dtype=torch.float16, device=device)
    with torch.no_grad():
        far = arguments | {"x": memory.as_strided((3, 16), (2**30, 1)).copy_(arguments["x"])}
        assert torch.equal(problem.by("triton")(**far), problem.by("triton")(**arguments))
