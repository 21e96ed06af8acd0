"""The table of every kernel."""

from uninterpreted import run

from benchmarks.predictions.catalogue import PAGE, table


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
