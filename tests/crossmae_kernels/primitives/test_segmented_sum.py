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


@pytest.mark.parametrize(
    ("segments", "ids_dtype"),
    [(n, dtype) for n in (1, 196, 255, 256, 32767, 32768, 2**31 - 1) for dtype in (torch.int64, torch.int32)]
    + [(2**31, torch.int64)],
)
def test_ids_are_sorted_in_few_bytes_and_none_comes_into_range_by_it(segments, ids_dtype, device, monkeypatch):
    from crossmae_kernels.primitives import segmented_sum

    near = [0, 1, segments // 2, segments - 2, segments - 1, segments, segments + 1, -1, -2, -segments, 2**31 - 1]
    wrapped = [bits + low for bits in (2**8, 2**16, 2**32, -(2**8), -(2**16), -(2**32)) for low in (0, segments - 1)]
    limits = torch.iinfo(ids_dtype)
    ids = [i for i in near * 3 + wrapped + near if limits.min <= i <= limits.max]
    # Ends of the segments that there are, in place of those of 2^31.
    asked = sorted({i for i in ids if 0 <= i <= segments})
    sorted_in = []

    def arange(end, device, dtype):
        sorted_in.append(dtype)
        return torch.tensor(asked, device=device, dtype=dtype)

    monkeypatch.setattr(segmented_sum.torch, "arange", arange)
    order, starts = segmented_sum.segments_of(torch.tensor(ids, dtype=ids_dtype, device=device), segments)
    for first, start, end in zip(asked, starts.tolist(), starts.tolist()[1:], strict=False):
        assert order[start:end].tolist() == [row for row, i in enumerate(ids) if i == first]
    narrowest = next(dtype for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64) if fits(segments, dtype))
    assert sorted_in == [narrowest]


def fits(number, dtype):
    return number <= torch.iinfo(dtype).max
