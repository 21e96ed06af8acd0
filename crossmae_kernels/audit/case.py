"""One compilation, and what is asked of its outcome."""

import importlib
from dataclasses import dataclass, field
from typing import Any

from crossmae_kernels.audit.compilation import SHARED_MEMORY, Assembly, CompilationError, compile_kernel

# Bytes of an element, by Triton's name of the dtype; "tf32" is fp32 that tensor cores multiply.
ITEM_SIZES = {"bf16": 2, "fp16": 2, "fp32": 4, "tf32": 4}


def element(dtype: str) -> str:
    """Triton's name of what lies in memory."""
    return "fp32" if dtype == "tf32" else dtype


def precision(dtype: str) -> str:
    """What kernels are told to multiply in, as by ``common.precision``."""
    return "tf32" if dtype == "tf32" else "ieee"


@dataclass(frozen=True)
class Case:
    """A kernel with all that decides what the compiler makes of it. Plain values: it goes to other processes."""

    kernel: str
    """``module:function``."""
    label: str
    """What tells this case from the kernel's others."""
    arch: int
    """Compute capability, 90 for 9.0."""
    dtype: str
    pointers: dict[str, Any]
    """Element type of each pointer argument; a tuple of types for an argument that is a tuple of pointers."""
    constants: dict[str, Any]
    """Values of compile-time arguments, and None for each pointer that is not passed."""
    warps: int = 4
    stages: int = 3
    registers: int | None = None
    """Registers that a thread may have; None leaves it to the assembler."""
    tensor_cores: bool = False
    """Whether matrix products are to run on them."""
    by_warp: bool = False
    """Whether each warp multiplies on its own, for which Hopper and Blackwell have Ampere's instructions."""
    load_bits: int = 128
    """Width of the widest load that its layout allows."""
    store_bits: int = 0
    """The same of the widest store, where it is looked at."""
    scalars: dict[str, str] = field(default_factory=dict)
    """Types of scalar arguments that are neither 32-bit integers nor named ``scale...`` (32-bit floats)."""

    @property
    def name(self) -> str:
        """The kernel's own name."""
        return self.kernel.split(":")[1]

    def compile(self) -> Assembly:
        """Compile it."""
        module, name = self.kernel.split(":")
        kernel = getattr(importlib.import_module(module), name)
        options = {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}
        return compile_kernel(kernel, self.pointers, self.constants, self.arch, options, scalars=self.scalars)


def shortcomings(case: Case, assembly: Assembly) -> list[str]:
    """What a compiled kernel lacks: everything in registers, room in shared memory, tensor cores, wide accesses."""
    limit = SHARED_MEMORY[case.arch]
    lacking = []
    if assembly.spilled:
        lacking.append(f"{assembly.spilled} instructions spill registers")
    if assembly.shared > limit:
        lacking.append(f"{assembly.shared} bytes of shared memory, {limit} are there")
    if case.tensor_cores:
        needed = "HMMA" if case.by_warp or case.arch < 90 else "HGMMA" if case.arch == 90 else None
        if case.dtype == "tf32":
            # Tiles of float32 may have fewer rows than Hopper's own instructions ask.
            needed = None
        if not assembly.tensor_core or (needed and needed not in assembly.tensor_core):
            lacking.append(f"tensor-core instructions are {assembly.tensor_core or 'none'}")
    if assembly.widest_load < case.load_bits:
        lacking.append(f"loads of {assembly.widest_load} bits at most")
    if assembly.widest_store < case.store_bits:
        lacking.append(f"stores of {assembly.widest_store} bits at most")
    return lacking


def report(case: Case) -> dict[str, object]:
    """Case, assembly and shortcomings as one flat record."""
    record = {"kernel": case.name, "label": case.label, "arch": case.arch, "dtype": case.dtype}
    try:
        assembly = case.compile()
    except CompilationError as error:
        return {**record, "shortcomings": [str(error)]}
    return {**record, **vars(assembly), "shortcomings": shortcomings(case, assembly)}
