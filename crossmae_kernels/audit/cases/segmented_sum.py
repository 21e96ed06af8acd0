"""The segmented sum as its launcher would ask for it."""

from collections.abc import Iterator

from crossmae_kernels.audit.case import Case
from crossmae_kernels.primitives.segmented_sum import BLOCK_COLUMNS, BLOCK_ROWS


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """The one form that there is."""
    yield Case(
        kernel="crossmae_kernels.primitives.segmented_sum:segmented_sum_kernel",
        label="",
        arch=arch,
        dtype=dtype,
        pointers={"rows": dtype, "order": "i64", "starts": "i64", "out": dtype},
        constants={"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS},
    )
