"""The kernels and configurations that ship: one module for each folder of kernels."""

from collections.abc import Callable, Iterator, Sequence

from crossmae_kernels.audit.case import ITEM_SIZES, Case
from crossmae_kernels.audit.cases import (
    cross_attention,
    feature_mixing,
    folding,
    mlp,
    patches,
    projection,
    segmented_sum,
)
from crossmae_kernels.audit.compilation import SHARED_MEMORY

# By op: the cases of an architecture and a dtype.
CASES: dict[str, Callable[[int, str], Iterator[Case]]] = {
    "cross_attention": cross_attention.cases,
    "feature_mixing": feature_mixing.cases,
    "folding": folding.cases,
    "mlp": mlp.cases,
    "patches": patches.cases,
    "projection": projection.cases,
    "segmented_sum": segmented_sum.cases,
}

# Those that multiply matrices; the others' code is in TF32 what it is in float32.
MULTIPLYING = ("cross_attention", "feature_mixing", "mlp", "projection")


def cases(
    ops: Sequence[str] = tuple(CASES),
    architectures: Sequence[int] = tuple(SHARED_MEMORY),
    dtypes: Sequence[str] = tuple(ITEM_SIZES),
) -> list[Case]:
    """Every case of the given ops, architectures and dtypes."""
    return [
        case
        for arch in architectures
        for dtype in dtypes
        for op in ops
        if dtype != "tf32" or op in MULTIPLYING
        for case in CASES[op](arch, dtype)
    ]
