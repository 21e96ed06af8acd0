"""What ops launch, recorded on a machine without a GPU and without computing anything.

Tensors made during a recording have shapes and no data. Operators run their launchers on these, forward and backward,
and what launchers ask of PyTorch costs nothing. Of a kernel's arguments the recording keeps what Triton's own launcher
makes of them: types, constants, and what it promises the compiler.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from crossmae_kernels.runtime.device import Limits, assume, interpreted


@dataclass(frozen=True)
class Launch:
    """A kernel and all that decides what the compiler makes of it. Plain values: it goes to other processes."""

    kernel: str
    """``module:function``."""
    signature: dict[str, Any]
    """Triton's type of each argument, ``constexpr`` for a constant, a tuple of types for a tuple."""
    constants: dict[tuple[int, ...], Any]
    """Values of constants by the place of the argument, also of pointers that are None and of numbers that are 1."""
    attributes: dict[tuple[int, ...], Any]
    """What else the compiler may rely on, by the place of the argument: which pointers and numbers 16 divides."""
    options: dict[str, Any]
    """Warps, stages and registers, where the launcher says."""
    grid: tuple[int, ...] = field(compare=False)
    """Programs; they leave the code as it is, and so do the numbers."""
    numbers: dict[str, int | float] = field(compare=False)
    """Values of the arguments that are neither pointers nor constants."""
    extents: dict[str, list[int]] = field(compare=False)
    """Bytes of the tensors of each argument that is one, is a tuple of some, or describes one."""

    @property
    def name(self) -> str:
        """The kernel's own name."""
        return self.kernel.split(":")[1]

    @property
    def named_constants(self) -> dict[str, Any]:
        """Values of constants by the name of the argument."""
        names = list(self.signature)
        return {names[place[0]]: value for place, value in self.constants.items()}


@contextmanager
def record(limits: Limits) -> Iterator[list[Launch]]:
    """Record the launches until the block ends, in order, as on a device with such ``limits``.

    Raises:
        RuntimeError: where Triton was imported to interpret its kernels, which then launch nothing.
    """
    if interpreted():
        raise RuntimeError("launches can't be recorded with TRITON_INTERPRET=1, with which there are none")
    launches: list[Launch] = []

    def run(kernel: JITFunction[Any], *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(_launch(kernel, grid, arguments, options))

    with ExitStack() as stack:
        stack.enter_context(assume(limits))
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        # Storages of a GPU begin at multiples of 512 bytes, so the offset within says what divides an address.
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", _bytes_into_storage))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_LaunchersInPlaceOfFakes())
        yield launches


def _launch(kernel: JITFunction[Any], grid: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Launch:
    """What ``kernel[grid](*arguments, **options)`` compiles and launches."""
    # What a launcher promises is alike for all of NVIDIA's architectures.
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, others = bind(*arguments, **options)
    _, signature, constants, attributes = kernel._pack_args(backend, dict(options), bound, specialization, others)
    numbers = {name: value for name, value in bound.items() if isinstance(value, int | float)}
    return Launch(
        f"{kernel.fn.__module__}:{kernel.fn.__name__}",
        signature,
        constants,
        attributes,
        others,
        tuple(grid),
        {name: value for name, value in numbers.items() if signature[name] != "constexpr"},
        {name: extents for name, value in bound.items() if (extents := _extents(value))},
    )


def _extents(value: Any) -> list[int]:
    """Bytes of a tensor, or of each of several."""
    if isinstance(value, tuple):
        return [extent for each in value for extent in _extents(each)]
    tensor = getattr(value, "base", value)  # of a descriptor
    return [tensor.numel() * tensor.element_size()] if isinstance(tensor, torch.Tensor) else []


def _bytes_into_storage(tensor: FakeTensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


class _LaunchersInPlaceOfFakes(TorchDispatchMode):
    """This package's operators run what they run on tensors with data, and all others on shapes alone."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "crossmae_kernels":
            with self:
                return op._op_dk(torch._C.DispatchKey.CPU, *args, **(kwargs or {}))
        return op(*args, **(kwargs or {}))
