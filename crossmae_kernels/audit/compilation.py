"""Compile a launch for a GPU that is not there, and read what the assembler made of it.

Triton compiles for any target without a driver. Registers, stack and instructions come from the disassembler that
ships with it.
"""

import contextlib
import importlib
import io
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crossmae_kernels.audit.recording import Launch

TENSOR_CORE_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA")


@dataclass(frozen=True)
class Assembly:
    """What one compiled kernel needs and issues."""

    registers: int
    spilled: int
    """Instructions that move registers to or from local memory."""
    shared: int
    """Bytes of shared memory."""
    products: tuple[str, ...]
    """Kinds of matrix products that the kernel asks for: ``2D bf16``, ``3D tf32``, ``2D ieee`` and so on."""
    tensor_core: tuple[str, ...]
    """Kinds of tensor-core instructions."""
    widest_load: int
    """Bits of the widest load or asynchronous copy from global memory."""
    widest_store: int


class CompilationError(RuntimeError):
    """The compiler refused; the message is its last line, not the whole program it prints."""


def compile_launch(launch: Launch, arch: int) -> Assembly:
    """Compile what a launch compiles, for an architecture given as 90 for 9.0.

    Raises:
        CompilationError: when Triton or the assembler refuses.
    """
    module, name = launch.kernel.split(":")
    kernel = getattr(importlib.import_module(module), name)
    source = ASTSource(kernel, launch.signature, constexprs=launch.constants, attrs=launch.attributes)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    except Exception as error:
        lines = (str(error) + printed.getvalue()).strip().splitlines()
        reasons = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise CompilationError(f"{name} for sm_{arch}: {'; '.join(reasons)[:500]}") from None
    return _read(compiled.asm["cubin"], compiled.metadata.shared, compiled.asm["ttir"])


def _read(cubin: bytes, shared: int, ttir: str) -> Assembly:
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
        products=_products(ttir),
        tensor_core=tuple(kind for kind in TENSOR_CORE_INSTRUCTIONS if kind in kinds),
        widest_load=max((_bits(o) for o, kind in zip(operations, kinds, strict=True) if kind in LOADS), default=0),
        widest_store=max((_bits(o) for o, kind in zip(operations, kinds, strict=True) if kind == "STG"), default=0),
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


def _bits(operation: str) -> int:
    if operation.startswith("UTMALDG"):
        return 128  # what moves a box moves lines
    width = re.search(r"\.(64|128|256)(?:\.|$)", operation)
    return int(width[1]) if width else 32


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
