"""What the device can do at most, as measured: bytes copied and products computed per second, on random data."""

import time
from collections.abc import Callable

import torch

from benchmarks.problem import Work
from crossmae.measure import wait_for_device

# float32 without the shortcut through tf32, and with it.
MATRIX_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "tf32": torch.float32}

Ceilings = dict[str, float]


def measure_ceilings(device: torch.device, tiny: bool) -> Ceilings:
    """``copy`` in bytes per second, read and written ones together; FLOP per second by name of the dtype."""
    size, width, rounds = (2**20, 128, 3) if tiny else (2**30, 8192, 20)
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    found = {"copy": 2 * source.numel() * source.element_size() / _median(lambda: target.copy_(source), rounds)}
    before = torch.get_float32_matmul_precision()
    try:
        for name, dtype in MATRIX_DTYPES.items():
            torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
            left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
            found[name] = 2 * width**3 / _median(lambda a=left, b=right: a @ b, rounds)  # type: ignore[misc]
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def bound(work: Work, dtype: str, ceilings: Ceilings) -> float | None:
    """Seconds that the work takes at the least; None where a ceiling was not measured."""
    if "copy" not in ceilings or dtype not in ceilings:
        return None
    return max(work.bytes / ceilings["copy"], work.flops / ceilings[dtype])


def _median(run: Callable[[], object], rounds: int) -> float:
    times = []
    for turn in range(rounds + 3):
        wait_for_device()
        begun = time.perf_counter()
        run()
        wait_for_device()
        if turn >= 3:
            times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]
