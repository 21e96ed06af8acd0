"""Broken kernels must not pass."""

import pytest
from mutation import broken

from crossmae_kernels.common.forms import form_of

GEMM = ("tiled", "crossmae_kernels.common.gemm")
PASS = ("vendor", "crossmae_kernels.projection")

MUTATIONS = {
    "ids off by one, product": (*GEMM, "other=0).to(tl.int64)", "other=0).to(tl.int64) + 1"),
    "ids off by one, pass": (*PASS, "other=0).to(tl.int64)", "other=0).to(tl.int64) + 1"),
    "residual, pass": (*PASS, "(tile + added", "(tile + 0.9 * added"),
    "tiles in the wrong place": (*GEMM, "within // size", "within // GROUP"),
}


@pytest.mark.budget
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(problems, by, ids_of, place, tmp_path, mutation):
    device, dtype = place
    form, folder, good, bad = MUTATIONS[mutation]
    # One row more than the ids may name, so that an id off by one stays inside of the table.
    task, ids = problems["linear_residual"]((2, 20), 24, 300, table=9), ids_of((2, 20), 8)
    solvers = by["linear_residual"]
    how = [solvers["kernels"](ids.to(device))], solvers["eager"](ids.to(device)), solvers["oracle"](ids)
    with form_of("linear_residual", form):
        task.judge(*how, device, dtype)
        with broken(folder, tmp_path, good, bad), pytest.raises(AssertionError, match="errs by"):
            task.judge(*how, device, dtype)
