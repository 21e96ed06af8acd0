"""Published times: what stands for them here computes and costs what they did, and the document holds them all."""

import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from benchmarks.predictions import comparison, kernels, report
from benchmarks.predictions.comparison import Row, predicted
from benchmarks.predictions.devices import GPUS
from benchmarks.predictions.libraries import LIBRARIES
from benchmarks.predictions.measurement import Published
from benchmarks.predictions.published import KERNELS, PUBLISHED
from benchmarks.records import ROOT

ROWS, COLUMNS, GROUPS = 7, 50, 3


def as_published(*ratios):
    """Predictions that are off by a ratio each."""
    return [
        Row(place, ratio * known.microseconds, "DRAM")
        for (place, known), ratio in zip(enumerate(PUBLISHED), ratios * len(PUBLISHED), strict=False)
    ]


def test_sum_of_vectors():
    x, y = torch.randn(100), torch.randn(100)
    out = torch.empty(100)
    kernels.add_kernel[(4,)](x, y, out, 100, BLOCK=32)
    torch.testing.assert_close(out, x + y)


@pytest.mark.parametrize(("kernel", "block"), [("layer_norm_kernel", 64), ("layer_norm_in_passes_kernel", 16)])
def test_layer_norm(kernel, block):
    x, weight, bias = torch.randn(ROWS, COLUMNS), torch.randn(COLUMNS), torch.randn(COLUMNS)
    out, means, scales = torch.empty_like(x), torch.empty(ROWS), torch.empty(ROWS)
    getattr(kernels, kernel)[(ROWS,)](x, out, weight, bias, means, scales, COLUMNS, 1e-5, BLOCK=block)
    torch.testing.assert_close(out, functional.layer_norm(x, (COLUMNS,), weight, bias))
    torch.testing.assert_close(means, x.mean(1))
    torch.testing.assert_close(scales, (x.var(1, correction=0) + 1e-5).rsqrt())


def test_backward_pass_of_layer_norm():
    x, dy = torch.randn(2, ROWS, COLUMNS)
    weight = torch.randn(COLUMNS)
    known = [x.clone().requires_grad_(), weight.clone().requires_grad_(), torch.zeros(COLUMNS, requires_grad=True)]
    functional.layer_norm(known[0], (COLUMNS,), *known[1:]).backward(dy)
    dx, sums, locks = torch.empty_like(x), torch.zeros(2, GROUPS, COLUMNS), torch.zeros(2 * GROUPS, dtype=torch.int32)
    kernels.layer_norm_backward_kernel[(ROWS,)](
        x, dx, dy, weight, x.mean(1), (x.var(1, correction=0) + 1e-5).rsqrt(), *sums, locks, COLUMNS,
        GROUPS=GROUPS, BLOCK=64,
    )  # fmt: skip
    dweight, dbias = torch.empty(2, COLUMNS)
    kernels.group_sums_kernel[(4,)](*sums, dweight, dbias, GROUPS, COLUMNS, M=2, N=16)
    for found, tensor in zip((dx, dweight, dbias), known, strict=True):
        torch.testing.assert_close(found, tensor.grad)


def test_times_that_rates_stand_for():
    """A TFLOPS is a million FLOPs a microsecond, a GB/s a thousand bytes."""
    known = Published("", "", "", 200.0, 4e9, "TFLOPS")
    assert known.microseconds == 20
    assert replace(known, unit="GB/s").microseconds == 20_000


@pytest.mark.parametrize("known", PUBLISHED, ids=lambda known: f"{known.device}-{known.name}")
def test_no_gpu_is_faster_than_its_vendor_says(known):
    """A wrong type, unit or GPU would be; caches do not count, as of 16 bits and one transfer at boost clock."""
    device = GPUS[known.device]
    tensor = device.tensor * device.limits.multiprocessors * device.clock / 1e3
    assert 0.05 < known.rate / (tensor if known.unit == "TFLOPS" else device.bandwidth) < 1.1


def test_a_product_of_a_library_takes_its_share_of_the_tensor_cores_rate():
    place = next(at for at, known in enumerate(PUBLISHED) if known.name == "cuBLAS, 4096^3, float16")
    device = GPUS[PUBLISHED[place].device]
    assert PUBLISHED[place].of_a_library
    cycles = 2 * 4096**3 / device.tensor / device.limits.multiprocessors / device.clock_share / 0.8
    assert predicted(place).microseconds == pytest.approx(device.launch + cycles / device.clock / 1e3)


def test_a_copy_moves_what_it_reads_and_writes():
    place = next(at for at, known in enumerate(PUBLISHED) if known.name == "BabelStream, triad")
    device = GPUS[PUBLISHED[place].device]
    moved = 3 * 8 * 2**25 / (device.bandwidth * device.bandwidth_share * 1e3)
    assert predicted(place) == Row(place, pytest.approx(device.launch + moved), "DRAM")


def test_what_follows_each_other_adds_up(monkeypatch):
    copy = next(known for known in LIBRARIES if known.unit == "GB/s")
    monkeypatch.setattr(comparison, "PUBLISHED", (copy, replace(copy, operations=3 * copy.operations)))
    assert predicted(1).microseconds == pytest.approx(3 * predicted(0).microseconds)


def test_what_constants_were_fitted_to_does_not_count():
    rows = as_published(1.0)
    for row in rows:
        if PUBLISHED[row.place].fitted:
            rows[row.place] = replace(row, microseconds=9 * row.microseconds)
    assert any(known.fitted for known in KERNELS)
    text = report.summary(rows)
    assert "and the worst 0%" in text
    assert "800%" not in text


def test_goals_that_are_missed_are_bold():
    """Of the median error, the worst, and the order, which a constant ratio keeps."""
    assert "**" not in report.summary(as_published(1.09)).replace("In **bold**", "")
    missed = report.summary(as_published(1.09, 0.6))
    assert "**40%**" in missed
    assert re.search(r"\*\*-?\d\.\d\d in TFLOPS\*\*", missed)
    assert "**25%**" in report.summary(as_published(1.25))


def test_libraries_are_counted_apart():
    text = report.summary([replace(row, microseconds=2 * row.microseconds) for row in as_published(1.0)[len(KERNELS) :]]
                          + as_published(1.0)[: len(KERNELS)])  # fmt: skip
    apart = [" ".join(text.split()).index(word) for word in ("the worst 0%", "of libraries that", "the worst 100%")]
    assert apart == sorted(apart)


def test_the_document_holds_every_row_and_source():
    text = (ROOT / "docs" / "predictions.md").read_text("utf-8")
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if " TFLOPS " in line]
    rows += [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if " GB/s " in line]
    for known in PUBLISHED:
        assert [known.name, known.device, f"{known.rate:,.0f} {known.unit}"] in [row[:3] for row in rows]
        assert f". {known.source}\n" in text
    assert "fail" not in text
