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


def audited(label, programs):
    return SimpleNamespace(label=label, launch=SimpleNamespace(name="mixing_forward_kernel", grid=(programs, 1)))


def test_figures_before_stand_beside_those_of_the_same_case_and_unit():
    known = [
        {
            "kernel": "mixing_forward", "label": "maps", "what": "float32", "at": 1, "per": "token",
            "instructions": 1931, "registers": None, "programs": 2,
        }
    ]  # fmt: skip
    chosen = same_as(known, [audited("maps", 1), audited("others", 2), audited("maps", 1024)])
    # 1,024 programs do 50 * 1,024 tokens, 50 each.
    record = {
        "instructions": 100_000, "registers": 128, "occupancy": 3, "moved": 2e9, "microseconds": 9.6, "limiter": "DRAM",
    }  # fmt: skip
    *_, line = beside(known, chosen, [record]).splitlines()
    expected = "mixing_forward, float32|maps|token|1,931 -> 2,000|? -> 128|2 -> 3|2000|10|DRAM"
    assert "|".join(cell.strip() for cell in line.strip("|").split("|")) == expected
    with pytest.raises(ValueError, match="mixing_forward at 'maps': need case 1, the audit has 1"):
        same_as(known, chosen)


def test_the_page_has_every_figure_before():
    rows = PAGE.read_text("utf-8").partition("<!-- before:")[2].partition("<!-- /before")[0]
    missing = [
        one for one in json.loads(BEFORE.read_text("utf-8"))["kernels"] if f"{one['instructions']:,} -> " not in rows
    ]
    assert not missing
