"""Broken kernels must not pass."""

import functools

import pytest
import seeds
from mutation import broken

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
    "residual": ("tiled", GEMM, "tile += added", "tile += 0.99 * added"),
    "hidden layer found again": ("tiled", MLP, "h += tl.load(b1 + columns", "h += 0.9 * tl.load(b1 + columns"),
    "last rows going back": ("tiled", MLP, "inside = rows < num_rows", "inside = rows < num_rows - 1"),
    "chunks of the hidden layer": ("single", MLP, "range(0, HIDDEN, BLOCK_H)", "range(BLOCK_H, HIDDEN, BLOCK_H)"),
    "end of the hidden layer": ("single", MLP, "(units < HIDDEN)[:, None]", "(units < HIDDEN - 1)[:, None]"),
    "residual of one kernel": ("single", MLP, "total += tl.load(x_tile", "total += 0.9 * tl.load(x_tile"),
}


def shown(form_name, dtype):
    """In float32, or in 16 bits where there is nothing else."""
    return dtype.itemsize == (2 if form_name == "single" else 4)


@pytest.fixture
def check(problem, by, place):
    """What judges kernels."""
    return to_break(seeds.current, problem, by["eager"], by["oracle"], *place)


@functools.cache
def to_break(seed, problem, eager, oracle, device, dtype):
    return problem((20,), 24, 70).judged(eager, oracle, device, dtype)


@pytest.mark.budget
@pytest.mark.parametrize("form_name", ["single", "tiled", "library"])
def test_the_kernels_pass(check, by, form, place, form_name):
    if not shown(form_name, place[1]):
        pytest.skip("broken in another dtype")
    with form(form_name):
        check(by["kernels"]())


@pytest.mark.budget
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(check, by, form, place, tmp_path, mutation):
    form_name, folder, good, bad = MUTATIONS[mutation]
    if not shown(form_name, place[1]):
        pytest.skip("broken in another dtype")
    with form(form_name), broken(folder, tmp_path, good, bad), pytest.raises(AssertionError, match="errs by"):
        check(by["kernels"]())
