"""The table of every kernel."""

import json
from types import SimpleNamespace

import pytest
from uninterpreted import run

from benchmarks.predictions.catalogue import BEFORE, PAGE, beside, same_as, table


def test_a_kernel_is_a_line():
    record = {
        "kernel": "gemm_kernel", "label": "49 x 512 x 2048", "registers": 107, "spilled": 0, "shared": 98304,
        "occupancy": 2, "instructions": 1582.4, "tensor_core": ["HGMMA", "HMMA"], "moved": 66_400_000,
        "microseconds": 65.7, "limiter": "shared memory",
    }  # fmt: skip
    *_, line = table([record]).splitlines()
    expected = "gemm, 49 x 512 x 2048, 107, 0, 96, 2, 1,582, HGMMA, HMMA, 66, 66, shared memory"
    assert ", ".join(cell.strip() for cell in line.strip("|").split("|")) == expected


def test_the_page_names_every_kernel():
    rows = PAGE.read_text("utf-8").partition("<!-- kernels:")[2].partition("<!-- /kernels")[0]
    names = run("-c", "from crossmae_kernels.audit.cases import kernel_names; print(*kernel_names())").split()
    assert names
    missing = [name for name in names if f"| {name.removesuffix('_kernel')} " not in rows]
    assert not missing


def launched(label):
    return SimpleNamespace(label=label, launch=SimpleNamespace(name="gemm_kernel"))


def test_figures_before_stand_beside_those_of_the_same_launch():
    known = [
        {
            "kernel": "gemm", "what": "fc2", "label": "mlp", "at": 1, "instructions": 4449, "registers": 128,
            "programs": 1, "microseconds": 274, "limiter": "latency",
        }
    ]  # fmt: skip
    wanted = launched("mlp")
    assert same_as(known, [launched("mlp"), launched("others"), wanted]) == [wanted]
    record = {
        "instructions": 4061.2, "registers": 128, "occupancy": 2, "moved": 2e9, "microseconds": 226.7, "limiter": "L2",
    }  # fmt: skip
    *_, line = beside(known, [record]).splitlines()
    expected = "gemm, fc2|mlp|4,449 -> 4,061|128|1 -> 2|2,000|274 -> 227|latency -> L2"
    assert "|".join(cell.strip() for cell in line.strip("|").split("|")) == expected
    with pytest.raises(ValueError, match="gemm at 'mlp': need launch 1, there are 1"):
        same_as(known, [wanted])


def test_the_page_has_every_figure_before():
    rows = PAGE.read_text("utf-8").partition("<!-- before:")[2].partition("<!-- /before")[0].splitlines()
    for one in json.loads(BEFORE.read_text("utf-8"))["kernels"]:
        kernel = ", ".join(filter(None, [one["kernel"], one["what"]]))
        (row,) = [row for row in rows if f"| {kernel} " in row]
        assert f" {one['instructions']:,} " in row
