"""bfloat16 in Triton's interpreter.

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
from typing import Any

from crossmae_kernels.extras import MissingPackageError, installed

# Of the interpreter's code this relies on nothing that is promised, so each version was read and tested.
TRITON_VERSIONS = ("3.6", "3.7", "3.8")


@functools.cache
def refusals() -> tuple[str, ...]:
    """Why the interpreter does not compute in bfloat16 here, in one line; empty if it does. Imports nothing."""
    if not installed("ml_dtypes"):
        return (f"bfloat16 in Triton's interpreter {MissingPackageError(('ml_dtypes',), 'interpreter')}",)
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        version = "an unknown one"
    if ".".join(version.split(".")[:2]) in TRITON_VERSIONS:
        return ()
    return (f"bfloat16 in Triton's interpreter is known for Triton {', '.join(TRITON_VERSIONS)}, this is {version}",)


@functools.cache
def install() -> None:
    """Let the interpreter compute in bfloat16 in this process from now on, unless ``refusals`` says why not.

    Other kernels that run in it gain the same; what it made of bfloat16 was no use to any.
    """
    if refusals():
        return
    import numpy as np
    from ml_dtypes import bfloat16
    from triton import language as tl
    from triton.runtime import interpreter

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
