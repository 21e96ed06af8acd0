"""Broken kernels must not pass."""

import pytest
import seeds
from mutation import broken

from crossmae_kernels.runtime.dispatch import form_of

GEMM = ("tiled", "crossmae_kernels.primitives.gemm")
PASS = ("library", "crossmae_kernels.projection")

MUTATIONS = {
    "ids off by one, product": (*GEMM, "other=0).to(tl.int64)", "other=0).to(tl.int64) + 1"),
    "ids off by one, pass": (*PASS, "other=0).to(tl.int64)", "other=0).to(tl.int64) + 1"),
    "residual, pass": (*PASS, "(tile + added", "(tile + 0.9 * added"),
    "tiles in the wrong place": (*GEMM, "within // size", "within // GROUP"),
}


# By seed and place: what judges kernels.
CHECKS = {}


@pytest.fixture
def judge(problems, by, ids_of, place):
    """Judges the kernels on one row more than the ids may name, so that an id off by one stays inside of the table."""
    device, dtype = place
    ids, solvers = ids_of((2, 20), 8), by["linear_residual"]
    here = ids.to(device)
    if (seeds.current, place) not in CHECKS:
        task = problems["linear_residual"]((2, 20), 24, 300, table=9)
        CHECKS[seeds.current, place] = task.judged(solvers["eager"](here), solvers["oracle"](ids), device, dtype)
    return lambda: CHECKS[seeds.current, place](solvers["kernels"](here))


@pytest.mark.budget
@pytest.mark.parametrize("form", ["tiled", "library"])
def test_the_kernels_pass(judge, form):
    with form_of("linear_residual", form):
        judge()


@pytest.mark.budget
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(judge, tmp_path, mutation):
    form, folder, good, bad = MUTATIONS[mutation]
    with (
        form_of("linear_residual", form),
        broken(folder, tmp_path, good, bad),
        pytest.raises(AssertionError, match="errs by"),
    ):
        judge()
