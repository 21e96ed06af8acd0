"""Compile a kernel for a GPU that is not there, and read what the assembler made of it.

Triton compiles for any target without a driver. Registers, stack and instructions come from the disassembler that
ships with it.
"""

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory that one program may have, by architecture (CUDA programming guide, table of compute capabilities).
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}

# What the launcher marks a pointer or a stride with that 16 divides.
ALIGNED = [["tt.divisibility", 16]]

TENSOR_CORE_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA")


@dataclass(frozen=True)
class Assembly:
    """What one compiled kernel needs and issues."""

    registers: int
    spilled: int
    """Instructions that move registers to or from local memory."""
    shared: int
    """Bytes of shared memory."""
    tensor_core: tuple[str, ...]
    """Kinds of tensor-core instructions."""
    widest_load: int
    """Bits of the widest load or asynchronous copy from global memory."""
    widest_store: int


class CompilationError(RuntimeError):
    """The compiler refused; the message is its last line, not the whole program it prints."""


def compile_kernel(
    kernel: Any,
    pointers: Mapping[str, str | tuple[str, ...]],
    constants: Mapping[str, object],
    arch: int,
    options: Mapping[str, int | None],
    scalars: Mapping[str, str],
) -> Assembly:
    """Compile as the launcher would for aligned, densely packed tensors.

    Args:
        kernel: a ``triton.jit`` function, not an interpreted one.
        pointers: Triton element type of each pointer argument, a tuple of them for a tuple of pointers.
        constants: values of the ``tl.constexpr`` arguments, and None for each pointer that is not passed.
        arch: compute capability, 90 for 9.0.
        options: the compiler's, as a launch passes them (``num_warps`` and so on).
        scalars: types of scalar arguments that are neither 32-bit integers nor named ``scale...`` (32-bit floats).

    Raises:
        CompilationError: when Triton or the assembler refuses.
    """
    counts = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    signature: dict[str, object] = {}
    aligned: dict[tuple[int, ...], object] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(elements := pointers.get(name), tuple):
            signature[name] = tuple(f"*{element}" for element in elements)
            aligned |= {(index, place): ALIGNED for place in range(len(elements))}
        elif elements is not None:
            signature[name] = f"*{elements}"
            aligned[(index,)] = ALIGNED
        else:
            signature[name] = scalars.get(name, "fp32" if name.startswith("scale") else "i32")
            if name not in counts and signature[name] != "fp32":
                aligned[(index,)] = ALIGNED
    source = ASTSource(kernel, signature, constexprs=dict(constants), attrs=aligned)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(options))
    except Exception as error:
        lines = (str(error) + printed.getvalue()).strip().splitlines()
        reasons = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise CompilationError(f"{kernel.__name__} for sm_{arch}: {'; '.join(reasons)[:500]}") from None
    return _read(compiled.asm["cubin"], compiled.metadata.shared)


def _read(cubin: bytes, shared: int) -> Assembly:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        assembly = _output(tools / "nvdisasm", "-c", file.name)
    operations = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", assembly, re.MULTILINE)
    kinds = [operation.split(".")[0] for operation in operations]
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None or not operations:
        raise CompilationError("the disassembler's output could not be read")
    return Assembly(
        registers=int(registers[1]),
        spilled=kinds.count("STL") + kinds.count("LDL"),
        shared=shared,
        tensor_core=tuple(kind for kind in TENSOR_CORE_INSTRUCTIONS if kind in kinds),
        widest_load=max((_bits(o) for o, kind in zip(operations, kinds, strict=True) if kind in LOADS), default=0),
        widest_store=max((_bits(o) for o, kind in zip(operations, kinds, strict=True) if kind == "STG"), default=0),
    )


# A load into registers, and an asynchronous copy into shared memory.
LOADS = ("LDG", "LDGSTS")


def _bits(operation: str) -> int:
    width = re.search(r"\.(64|128|256)(?:\.|$)", operation)
    return int(width[1]) if width else 32


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
