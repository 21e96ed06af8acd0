"""Triton's interpreter, taught bfloat16.

The interpreter keeps bfloat16 as uint16 and computes with these: 1 + 1 is 1.7e38. From float32 it cuts off what is to
be rounded, so that a NaN whose payload is low becomes infinite. Here the values are arrays of ``ml_dtypes.bfloat16``, a
dtype that is registered with NumPy: its operators compute in float32 and round once, and its casts round to nearest,
ties to even. Three places of the interpreter say what bfloat16 is: NumPy's dtype for it, casts from and to it, and
constants, which it lacks. The others take arrays as they are: loads and stores copy bytes, products are asked for in
the accumulator's dtype.

Triton's float8 and casts that ask to round otherwise stay as they were, as does whatever is not bfloat16. What is shown
by this is arithmetic. It is neither the layout of tiles in a compiled kernel nor the order and the width in which
tensor cores add up.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Collection
from typing import Any

import torch

from crossmae_kernels.extras import MissingPackageError, installed

# Nothing that is changed here is a public interface, so each version was read and tested.
TRITON_VERSIONS = ("3.6", "3.7", "3.8")


def refusals(dtypes: Collection[torch.dtype]) -> tuple[str, ...]:
    """Why the interpreter cannot run kernels that read or write these; empty if it can. Imports nothing."""
    if _is_broken():
        return ("the interpreter of Triton 3.6 needs NumPy < 2.4",)
    return _bfloat16_refusals() if torch.bfloat16 in dtypes else ()


@functools.cache
def teach() -> None:
    """Let the interpreter compute in bfloat16 in this process from now on, and faster, where it is a known one.

    All other kernels that run in it change too; what it computed in bfloat16 was of no use to any.
    """
    if _bfloat16_refusals():
        return
    from triton.runtime import interpreter

    _teach_bfloat16(interpreter)
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


def _prepare_once_a_launch(interpreter: Any) -> None:
    """Replace the language's functions by the interpreter's once for each function of a launch, not at each call.

    Looking through the language for what is left to exchange took a quarter of the time of kernels of ours.
    """
    exchange, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    exchanged: set[Callable[..., Any]] = set()

    def exchange_once(function: Callable[..., Any]) -> Any:
        if function in exchanged:
            return None  # only a launch, which comes first, wants what undoes it
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
    version = _version("triton") or "an unknown one"
    if ".".join(version.split(".")[:2]) in TRITON_VERSIONS:
        return ()
    return (f"bfloat16 in Triton's interpreter is known for Triton {', '.join(TRITON_VERSIONS)}, this is {version}",)


@functools.cache
def _is_broken() -> bool:
    """It converts bounds of loops to scalars in a way that NumPy 2.4 no longer allows."""
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
