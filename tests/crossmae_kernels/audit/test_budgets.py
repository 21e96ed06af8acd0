"""Kernels need no more than they did when their budgets were accepted."""

import pytest
from uninterpreted import run

from crossmae_kernels.audit.budgets import budgets


def compared(*options):
    lines = run("-m", "crossmae_kernels.audit.budgets", *options).splitlines()
    if any("nothing is compared" in line for line in lines):
        pytest.skip(lines[0])
    return lines


def test_kernels_that_take_most_of_a_step():
    lines = compared("--kernels", "gemm_kernel", "short_backward_kernel")
    assert [line.partition(": ")[2] for line in lines] == ["ok", "ok"]


@pytest.mark.slow
def test_every_kernel():
    lines = compared()
    assert {line.rpartition(": ")[0] for line in lines} == {*budgets()}
    assert [line for line in lines if not line.endswith(": ok")] == []
