"""Compile a launch for a GPU that is not there, and read what the assembler made of it.

Triton compiles for any target without a driver. Registers and stack are read from the assembler's file, instructions
come from the disassembler that ships with it; without that the rest is known all the same.
"""

import contextlib
import importlib
import io
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crossmae_kernels.audit.kernel_file import KernelFile, read
from crossmae_kernels.audit.machine_code import Instruction, parse
from crossmae_kernels.audit.recording import Launch

NO_DISASSEMBLER = "there is no nvdisasm, neither Triton's nor one that TRITON_NVDISASM_PATH names"
TENSOR_CORE_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA")


@dataclass(frozen=True)
class Assembly:
    """What one compiled kernel needs and issues; None of what only the disassembler tells, where there is none."""

    registers: int
    stack: int
    """Bytes of a thread's registers that are spilled to local memory."""
    spilled: int | None
    """Instructions that move registers to or from local memory."""
    shared: int
    """Bytes of shared memory."""
    products: tuple[str, ...]
    """Kinds of matrix products that the kernel asks for: ``2D bf16``, ``3D tf32``, ``2D ieee`` and so on."""
    tensor_core: tuple[str, ...] | None
    """Kinds of tensor-core instructions."""
    widest_load: int | None
    """Bits of the widest load or asynchronous copy from global memory."""
    widest_store: int | None


class CompilationError(RuntimeError):
    """The compiler refused; the message is its last line, not the whole program it prints."""


@dataclass(frozen=True)
class Kernel:
    """A compiled launch."""

    code: list[Instruction]
    """Empty where there is no disassembler."""
    file: KernelFile
    shared: int
    """Bytes of shared memory."""
    products: tuple[str, ...]
    """As in ``Assembly``."""


def compile_launch(launch: Launch, arch: int) -> Kernel:
    """Compile what a launch compiles, for an architecture given as 90 for 9.0.

    Raises:
        CompilationError: when Triton or the assembler refuses.
    """
    module, name = launch.kernel.split(":")
    kernel = getattr(importlib.import_module(module), name)
    source = ASTSource(kernel, launch.signature, constexprs=launch.constants, attrs=launch.attributes)
    printed = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            triton.knobs.compilation.scope(),
        ):
            # What Triton has cached names source lines by the path of whichever copy was compiled first.
            triton.knobs.compilation.always_compile = True
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    except Exception as error:
        lines = (str(error) + printed.getvalue()).strip().splitlines()
        reasons = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise CompilationError(f"{name} for sm_{arch}: {'; '.join(reasons)[:500]}") from None
    return _disassembled(compiled.asm["cubin"], compiled.metadata.shared, compiled.asm["ttir"])


def _disassembled(cubin: bytes, shared: int, ttir: str) -> Kernel:
    tool = disassembler()
    code = []
    if tool is not None:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            # Without analysis of branches, a third of its time: its targets are there all the same.
            command = [tool.path, "-c", "-hex", "-g", "-ndf", file.name]
            code = parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Kernel(code, read(cubin), shared, _products(ttir))


def disassembler() -> Any:
    """The ``nvdisasm`` that Triton finds, with its ``path`` and ``version``; None if there is none."""
    try:
        return triton.knobs.nvidia.nvdisasm
    except RuntimeError:
        return None


def assembly_of(kernel: Kernel) -> Assembly:
    """What a kernel needs and issues, counted."""
    registers, stack = kernel.file.registers, kernel.file.stack
    if not kernel.code:
        return Assembly(registers, stack, None, kernel.shared, kernel.products, None, None, None)
    names = [instruction.name for instruction in kernel.code]
    bits = [(instruction.name, _bits(instruction)) for instruction in kernel.code]
    return Assembly(
        registers=registers,
        stack=stack,
        spilled=names.count("STL") + names.count("LDL"),
        shared=kernel.shared,
        products=kernel.products,
        tensor_core=tuple(name for name in TENSOR_CORE_INSTRUCTIONS if name in names),
        widest_load=max((width for name, width in bits if name in LOADS), default=0),
        widest_store=max((width for name, width in bits if name == "STG"), default=0),
    )


def _products(ttir: str) -> tuple[str, ...]:
    """Dimensions of their operands, and in what they are multiplied."""
    found = set()
    for attributes, shape, element in re.findall(r"tt\.dot ([^:]*): tensor<((?:\d+x)+)(\w+)>", ttir):
        exact = "ieee" if "tf32" not in attributes else "tf32"
        found.add(f"{shape.count('x')}D " + (exact if element == "f32" else element))
    return tuple(sorted(found))


# A load into registers, and asynchronous copies into shared memory: of each thread, and of a box by one for all.
LOADS = ("LDG", "LDGSTS", "UTMALDG")


def _bits(instruction: Instruction) -> int:
    return 128 if instruction.name == "UTMALDG" else 8 * instruction.bytes  # what moves a box moves lines
