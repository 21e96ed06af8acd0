"""Broken kernels must not pass."""

import functools

import pytest
import seeds
import torch
from mutation import broken
from oracles import oracle_of
from places import in_float32_and_bfloat16

from crossmae_kernels.testing import Draw, Judge
from crossmae_kernels.testing.problems import in_form, linear_residual

pytestmark = in_float32_and_bfloat16

GEMM = ("tiled", "crossmae_kernels.primitives.gemm")
PERSISTENT = ("persistent", "crossmae_kernels.primitives.persistent_gemm")
PASS = ("library", "crossmae_kernels.projection")

MUTATIONS = {
    "ids off by one, product": (*GEMM, "other=0).to(tl.int64)", "other=0).to(tl.int64) + 1"),
    "ids off by one, pass": (*PASS, "other=0).to(tl.int64)", "other=0).to(tl.int64) + 1"),
    "residual, pass": (*PASS, "(tile + added", "(tile + 0.9 * added"),
    "box of the weight": (*PERSISTENT, "[column_tile * BLOCK_N, first]", "[column_tile * BLOCK_N + 1, first]"),
    "inner extent": (*PERSISTENT, "range(0, INNER, BLOCK_K)", "range(BLOCK_K, INNER, BLOCK_K)"),
    "tiles left out": (*PERSISTENT, "tiles, tl.num", "tiles - 1, tl.num"),
    "tiles in the wrong place": (*GEMM, "within // size", "within // GROUP"),
}


@functools.cache
def judge_of(seed, device, dtype):
    # One row more than the ids may name, so that an id off by one stays inside of the table.
    problem = linear_residual(Draw(seed, device), (2, 20), 24, 300, table=9)
    problem = problem.having(residual_ids=problem.arguments["residual_ids"].clamp(max=7))
    return Judge(problem, dtype, oracle_of(problem))


@pytest.fixture
def check(place):
    """Judges the kernels in a form."""
    judge = judge_of(seeds.seeded(), *place)

    def check(form):
        if form == "persistent" and place[1] == torch.float32:
            pytest.skip("not served in this form")
        with in_form(judge.problem, form).in_form():
            judge.check(judge.problem.by("triton"))

    return check


@pytest.mark.budget
@pytest.mark.parametrize("form", ["tiled", "persistent", "library"])
def test_the_kernels_pass(check, form):
    check(form)


@pytest.mark.budget
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(check, tmp_path, mutation):
    form, folder, good, bad = MUTATIONS[mutation]
    with broken(folder, tmp_path, good, bad), pytest.raises(AssertionError, match="errs by"):
        check(form)
