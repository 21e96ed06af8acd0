"""Broken kernels must not pass."""

import functools

import pytest
import seeds
from mutation import broken
from oracles import oracle_of
from places import in_float32_and_bfloat16

from crossmae_kernels.testing import Draw, Judge
from crossmae_kernels.testing.problems import in_form, mlp

pytestmark = in_float32_and_bfloat16

NORM = "crossmae_kernels.primitives.normalization"
GEMM = "crossmae_kernels.primitives.gemm"
GELU = "crossmae_kernels.primitives.gelu"
MLP = "crossmae_kernels.mlp"

# The form that shows it, the kernels, what is replaced and by what.
MUTATIONS = {
    "half of eps": ("library", NORM, "/ WIDTH + eps)", "/ WIDTH + 0.5 * eps)"),
    "mean not taken off": ("library", NORM, "/ WIDTH)[:, None], 0.0)", "/ WIDTH * 0.0)[:, None], 0.0)"),
    "gradient along the row": ("library", NORM, "- normalized * along[:, None]", "- 0.0 * along[:, None]"),
    "residual's gradient": ("library", NORM, "result += passed_on", "result += 0.99 * passed_on"),
    "derivative of gelu": ("library", GELU, "distribution + h * (", "distribution + 0.98 * h * ("),
    "sum of a bias's gradient": ("library", GELU, "tl.sum(dh, axis=0)", "tl.sum(0.99 * dh, axis=0)"),
    "last rows of a product": ("tiled", GEMM, "inside = rows < num_rows", "inside = rows < num_rows - 1"),
    "end of the inner extent": ("tiled", GEMM, "first + inner < INNER", "first + inner < INNER - 1"),
    "bias": ("tiled", GEMM, "other=0.0).to(tl.float32)[None, :]", "other=0.0).to(tl.float32)[None, :] * 0.99"),
    "residual": ("tiled", GEMM, "part += added", "part += 0.99 * added"),
    "hidden layer found again": ("tiled", MLP, "h += tl.load(b1 + columns", "h += 0.9 * tl.load(b1 + columns"),
    "last rows going back": ("tiled", MLP, "inside = rows < num_rows", "inside = rows < num_rows - 1"),
    "chunks of the hidden layer": ("single", MLP, "range(0, HIDDEN, BLOCK_H)", "range(BLOCK_H, HIDDEN, BLOCK_H)"),
    # Several units: one that is negative in all rows is next to nothing behind GELU.
    "end of the hidden layer": ("single", MLP, "(units < HIDDEN)[:, None]", "(units < HIDDEN - 4)[:, None]"),
    "residual of one kernel": ("single", MLP, "total += tl.load(x_tile", "total += 0.9 * tl.load(x_tile"),
}


def shown(form, dtype):
    """In float32, or in 16 bits where there is nothing else."""
    return dtype.itemsize == (2 if form == "single" else 4)


@functools.cache
def judge_of(seed, device, dtype):
    problem = mlp(Draw(seed, device), (20,), 24, 70, eps=1e-3)
    return Judge(problem, dtype, oracle_of(problem))


@pytest.fixture
def check(place):
    """Judges the kernels in a form."""
    judge = judge_of(seeds.seeded(), *place)

    def check(form):
        if not shown(form, place[1]):
            pytest.skip("broken in another dtype")
        with in_form(judge.problem, form).in_form():
            judge.check(judge.problem.by("triton"))

    return check


@pytest.mark.budget
@pytest.mark.parametrize("form", ["single", "tiled", "library"])
def test_the_kernels_pass(check, form):
    check(form)


@pytest.mark.budget
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(check, tmp_path, mutation):
    form, folder, good, bad = MUTATIONS[mutation]
    with broken(folder, tmp_path, good, bad), pytest.raises(AssertionError, match="errs by"):
        check(form)
