"""What a device offers to Triton kernels, queried when a call needs it and never at import."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossmae_kernels.extras import installed
from crossmae_kernels.runtime import interpreter

Function = TypeVar("Function", bound=Callable[..., Any])

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# A wider row would not fit in the registers of a 16-warp program while it is normalised.
WIDEST_ROW = 16 * 1024


@dataclass(frozen=True)
class Limits:
    """The device properties that launchers need."""

    capability: int
    """Compute capability, 90 for 9.0."""
    shared_memory: int
    """Bytes available to one program."""
    multiprocessors: int

    @property
    def multiplies_from_shared_memory(self) -> bool:
        """Whether tensor cores read operands from shared memory (Hopper, datacenter Blackwell), not from registers."""
        return 90 <= self.capability < 120


# Hopper's, the first target; the interpreter itself has no limits, and no parallelism.
INTERPRETER = Limits(90, 227 * 1024, 1)

_assumed: Limits | None = None


@contextmanager
def assume(limits: Limits) -> Iterator[None]:
    """Pretend within the block that every device has these limits and runs kernels: launches are only recorded."""
    global _assumed
    before, _assumed = _assumed, limits
    try:
        yield
    finally:
        _assumed = before


def assumed() -> bool:
    """Whether launches are only recorded."""
    return _assumed is not None


def interpreted() -> bool:
    """Whether Triton runs kernels in its slow interpreter on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def constant_when_compiled(function: Function) -> Function:
    """Let ``torch.compile`` call the function once instead of tracing it.

    ``torch.compiler.assume_constant_result`` does the same, but imports the compiler and Triton.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def machine_refusals(device: torch.device, *dtypes: torch.dtype) -> list[str]:
    """Every reason why kernels cannot run on tensors on ``device``; empty if they can.

    ``dtypes`` are all floating-point dtypes that the call's kernels read or write, forward and backward.
    """
    refusals = [] if _triton_is_installed() else ["Triton is not installed"]
    if _assumed is not None:
        pass  # nothing runs
    elif device.type == "cuda":
        refusals += _cuda_refusals(device.index or 0)
    elif device.type != "cpu":
        refusals.append(f"kernels run on CUDA devices, but these tensors are on {device}")
    elif not interpreted():
        refusals.append("kernels run on CUDA devices; on a CPU only in Triton's interpreter, with TRITON_INTERPRET=1")
    elif _triton_is_installed():
        refusals += interpreter.refusals(dtypes)
    others = set(dtypes).difference(KERNEL_DTYPES)
    if others:
        given = " and ".join(sorted(map(str, others)))
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in KERNEL_DTYPES)
        refusals.append(f"kernels support {names}, but these tensors are {given}")
    return refusals


def dtypes_of(*tensors: Tensor | None) -> list[torch.dtype]:
    """The dtype of each tensor that is not None."""
    return [tensor.dtype for tensor in tensors if tensor is not None]


def mixture_refusals(name: str, tensors: Sequence[Tensor]) -> list[str]:
    """Why one kernel cannot read all these tensors, as autocast allows mixed dtypes."""
    dtypes = sorted({str(tensor.dtype) for tensor in tensors})
    return [f"kernels need {name} of one dtype, but these are {' and '.join(dtypes)}"] if len(dtypes) > 1 else []


def residual_refusals(name: str, residual: Tensor, compute: torch.dtype) -> list[str]:
    """Why the kernels cannot add this residual: it must be float32 or the dtype of products."""
    # A dtype that no kernel supports is refused elsewhere.
    if residual.dtype in (torch.float32, compute) or residual.dtype not in KERNEL_DTYPES:
        return []
    return [f"kernels need {name} in float32 or {compute}, got {residual.dtype}"]


def width_refusals(width: int) -> list[str]:
    """Why the kernels cannot normalise rows of this width."""
    return [f"kernels normalise rows of up to {WIDEST_ROW}, but these have {width}"] if width > WIDEST_ROW else []


def norm_refusals(x: Tensor, parameters: Sequence[Tensor | None], compute: torch.dtype) -> list[str]:
    """Every reason why kernels cannot normalise ``x``, fold ``parameters`` and multiply in ``compute``."""
    return (
        machine_refusals(x.device, *dtypes_of(x, *parameters), compute)
        + residual_refusals("x", x, compute)
        + width_refusals(x.shape[-1])
    )


def limits(device: torch.device) -> Limits:
    """The limits by which tiles and grids are chosen."""
    if _assumed is not None:
        return _assumed
    return _cuda_limits(device.index or 0) if device.type == "cuda" else INTERPRETER


@functools.cache
def _triton_is_installed() -> bool:
    return installed("triton")


@functools.cache
def _cuda_refusals(index: int) -> tuple[str, ...]:
    if torch.version.hip is not None:
        return ("kernels are written for NVIDIA GPUs, but this PyTorch is built for ROCm",)
    if interpreted():
        return ("TRITON_INTERPRET=1 runs kernels in the CPU interpreter, but these tensors are on CUDA",)
    major, minor = torch.cuda.get_device_capability(index)
    return () if major >= 8 else (f"kernels need compute capability 8.0 or newer, but this device has {major}.{minor}",)


@functools.cache
def _cuda_limits(index: int) -> Limits:
    properties: Any = torch.cuda.get_device_properties(index)  # some versions of PyTorch do not declare all fields
    capability = 10 * properties.major + properties.minor
    return Limits(capability, properties.shared_memory_per_block_optin, properties.multi_processor_count)
