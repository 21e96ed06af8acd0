"""Sums over rows and the cast beside them: the budget, what is not rounded, broken kernels."""

import pytest
import seeds
import torch
from mutation import broken
from places import in_float32_and_bfloat16

from crossmae_kernels.testing import assert_within_budget, budgets, poisoned_allocations

MODULE = "crossmae_kernels.primitives.column_sums"

# Tiles are of 128 x 64, and of 64 x 32 tiles.
SHAPES = [(1, 1), (128, 64), (129, 65), (300, 130), (64 * 128 + 1, 3)]


def sums_of(*parts):
    """Each matrix cast to the dtype, and its sum over rows, added up in one launch."""
    from crossmae_kernels.primitives.column_sums import column_sums, totals

    with poisoned_allocations():
        cast, sums = zip(*(column_sums(rows, dtype) for rows, dtype in parts), strict=True)
        return cast, totals(*((each, rows.dtype) for each, (rows, _) in zip(sums, parts, strict=True)))


def check(device, dtype, shapes):
    generator = torch.Generator().manual_seed(seeds.seeded())
    matrices = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    exact = {str(index): rows.double().sum(0) for index, rows in enumerate(matrices)}
    allowed = budgets(lambda: {str(index): rows.sum(0) for index, rows in enumerate(matrices)}, exact)
    _, found = sums_of(*((rows, dtype) for rows in matrices))
    assert_within_budget({str(index): each for index, each in enumerate(found)}, exact, allowed)


@pytest.mark.budget
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_one_matrix_and_of_two(place, shape):
    check(*place, [shape])
    check(*place, [shape, (70, 40)])


def test_rows_are_cast_and_sums_are_not_of_rounded_ones(device):
    rows = torch.full((130, 70), 1 + 2**-12, device=device)
    ((cast,), (total,)) = sums_of((rows, torch.float16))
    assert torch.equal(cast, rows.half())
    assert torch.equal(total, 130 * rows[0])


def test_rows_of_any_stride_and_none_at_all(device):
    rows = torch.randn(40, 30, device=device)[::2, :7]
    (same,), (total,) = sums_of((rows, rows.dtype))
    assert same is rows
    torch.testing.assert_close(total, rows.sum(0))
    _, (nothing, total) = sums_of((rows[:0], rows.dtype), (rows, rows.dtype))
    assert torch.equal(nothing, torch.zeros(7, device=device))
    torch.testing.assert_close(total, rows.sum(0))


MUTATIONS = {
    "last rows": ("places < num_rows - first_row", "places < num_rows - 1 - first_row"),
    "tiles on top of each other": ("sums + tl.program_id(0)", "sums + 0 * tl.program_id(0)"),
    "last tiles": ("places < tiles)", "places < tiles - 1)"),
    "block of the others": ("block - first_ones", "block"),
}


@in_float32_and_bfloat16
@pytest.mark.budget
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(place, tmp_path, mutation):
    with broken(MODULE, tmp_path, *MUTATIONS[mutation]), pytest.raises(AssertionError, match="errs by"):
        check(*place, [(300, 130), (200, 40)])
