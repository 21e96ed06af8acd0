import pytest
import torch

from crossmae_kernels.testing import assert_within_budget, budgets, poisoned_allocations


def segmented_sum(rows, ids, segments):
    # Triton is asked for where a kernel runs, and not where tests are collected.
    from crossmae_kernels.primitives.segmented_sum import segmented_sum

    return segmented_sum(rows, ids, segments)


@pytest.mark.budget
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("rows", "width", "segments"), [(300, 40, 7), (5, 130, 9), (64, 256, 1), (0, 8, 3)])
def test_sums_rows_by_id(place, rows, width, segments, ids_dtype):
    device, dtype = place
    values = torch.randn(rows, width).to(device, dtype)
    ids = torch.randint(segments, (rows,), dtype=ids_dtype, device=device)
    zeros = torch.zeros(segments, width, device=device)
    exact = {"sum": zeros.double().index_add(0, ids, values.double())}
    allowed = budgets(lambda: {"sum": zeros.to(dtype).index_add(0, ids, values)}, exact)
    with poisoned_allocations():
        found = segmented_sum(values, ids, segments)
        again = segmented_sum(values, ids, segments)
    assert_within_budget({"sum": found}, exact, allowed)
    assert torch.equal(found, again)


def test_ids_out_of_range_are_left_out(device):
    rows = torch.randn(6, 16, device=device)
    ids = torch.tensor([-1, 0, 3, 1, 2**40, 0], device=device)
    found = segmented_sum(rows, ids, 3)
    assert torch.equal(found, torch.stack([rows[1] + rows[5], rows[3], torch.zeros_like(rows[0])]))
