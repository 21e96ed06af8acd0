"""Mend Triton's interpreter: bfloat16, sums, and its speed.

The interpreter stores bfloat16 as uint16 and computes with these integers: 1 + 1 is 1.7e38. Casts from float32
truncate, so a NaN with a low payload becomes infinite. Here the values are arrays of ``ml_dtypes.bfloat16``, a dtype
registered with NumPy, whose operators compute in float32 and round once, and whose casts round to nearest, ties to
even. Three places in the interpreter define bfloat16: its NumPy dtype, casts from and to it, and constants, which are
missing. All others work on any array: loads and stores copy bytes, and products are computed in the accumulator's
dtype.

In every dtype, sums over an axis are taken in pairs, and functions are prepared once per launch. Triton's float8 and
casts with other rounding modes are unchanged. The interpreter verifies arithmetic; it shows neither the tile layouts of
a compiled kernel nor the order and width in which tensor cores accumulate.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Collection
from typing import Any

import torch

from crossmae_kernels.extras import MissingPackageError, installed

# This changes private interfaces, so each of these versions was read and tested.
TRITON_VERSIONS = ("3.6", "3.7", "3.8")


def refusals(dtypes: Collection[torch.dtype]) -> tuple[str, ...]:
    """Why the interpreter cannot run kernels with these dtypes; empty if it can. Imports nothing."""
    if _is_broken():
        return ("the interpreter of Triton 3.6 needs NumPy < 2.4",)
    return _bfloat16_refusals() if torch.bfloat16 in dtypes else ()


@functools.cache
def teach() -> None:
    """From now on, let the interpreter sum in pairs in this process, and compute in bfloat16, if its version is known.

    This affects all other kernels in the interpreter too, whose bfloat16 results were meaningless before. bfloat16
    needs ``ml_dtypes``.
    """
    if not _is_known():
        return
    from triton.runtime import interpreter

    if not _bfloat16_refusals():
        _teach_bfloat16(interpreter)
    _sum_in_pairs(interpreter)
    _prepare_once_a_launch(interpreter)


def _teach_bfloat16(interpreter: Any) -> None:
    import numpy as np
    from ml_dtypes import bfloat16
    from triton import language as tl

    numpy_dtype = interpreter._get_np_dtype
    builder = interpreter.InterpreterBuilder
    cast_others = builder.cast_impl

    def dtype_of(kind: Any) -> Any:
        return np.dtype(bfloat16) if kind.scalar == tl.bfloat16 else numpy_dtype(kind)

    def cast(self: Any, value: Any, kind: Any) -> Any:
        if tl.bfloat16 not in (value.dtype.scalar, kind.scalar):
            return cast_others(self, value, kind)
        return interpreter.TensorHandle(value.data.astype(dtype_of(kind)), kind.scalar)

    def constant(self: Any, value: float) -> Any:
        return interpreter.TensorHandle(np.array([value], bfloat16), tl.bfloat16)

    interpreter._get_np_dtype = dtype_of
    builder.cast_impl = cast
    builder.get_bf16 = constant


def _sum_in_pairs(interpreter: Any) -> None:
    """Sum over an axis as NumPy does over contiguous numbers: eight running sums, then these in pairs.

    Over any other axis than the last NumPy adds row by row. The error of 128 numbers in float32, one after another, is
    2.2 times as large. Compiled code has neither: each thread sums a few, and threads are summed in pairs.
    """
    import numpy as np

    operation = interpreter.ReduceOps
    sum_of_others = operation.sum

    def sum_over_axis(self: Any, values: Any) -> Any:
        if self.axis is None:
            return sum_of_others(self, values)
        data = np.ascontiguousarray(np.moveaxis(values.handle.data, self.axis, -1)).sum(axis=-1)
        return self.to_tensor(np.expand_dims(data, self.axis) if self.keep_dims else data, values.dtype)

    operation.sum = sum_over_axis


def _prepare_once_a_launch(interpreter: Any) -> None:
    """Patch the language's functions once per function and launch, instead of at every call.

    Searching the language for functions left to patch took a quarter of our kernels' time.
    """
    exchange, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    exchanged: set[Callable[..., Any]] = set()

    def exchange_once(function: Callable[..., Any]) -> Any:
        if function in exchanged:
            return None  # only a launch, which comes first, needs the undo function
        exchanged.add(function)
        return exchange(function)

    def launch_afresh(self: Any, *arguments: Any, **others: Any) -> Any:
        exchanged.clear()
        try:
            return launch(self, *arguments, **others)
        finally:
            exchanged.clear()

    interpreter._patch_lang = exchange_once
    interpreter.GridExecutor.__call__ = launch_afresh


@functools.cache
def _bfloat16_refusals() -> tuple[str, ...]:
    if not installed("ml_dtypes"):
        return (f"bfloat16 in Triton's interpreter {MissingPackageError(('ml_dtypes',), 'interpreter')}",)
    if _is_known():
        return ()
    version = _version("triton") or "an unknown one"
    return (f"bfloat16 in Triton's interpreter needs Triton {', '.join(TRITON_VERSIONS)}, but this is {version}",)


def _is_known() -> bool:
    return ".".join((_version("triton") or "").split(".")[:2]) in TRITON_VERSIONS


@functools.cache
def _is_broken() -> bool:
    """Whether it converts loop bounds to scalars in a way that NumPy 2.4 no longer allows."""
    versions = [_version(name) for name in ("triton", "numpy")]
    if None in versions:
        return False
    triton, numpy = (tuple(map(int, version.split(".")[:2])) for version in versions if version)
    return triton <= (3, 6) and numpy >= (2, 4)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
