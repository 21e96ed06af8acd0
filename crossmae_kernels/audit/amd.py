"""Compile a launch for a GPU of AMD's, and count in the assembly what its compiler made of it."""

import re

from triton.backends.compiler import GPUTarget

from crossmae_kernels.audit.compilation import Assembly, compile_for, products_of
from crossmae_kernels.audit.devices import AmdDevice
from crossmae_kernels.audit.recording import Launch

_BITS = {"ubyte": 8, "ushort": 16, "short": 16, "byte": 8, "dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}


def compile_for_amd(launch: Launch, device: AmdDevice) -> Assembly:
    """What a launch needs and issues there. ``registers`` are vector registers; ``tensor_core`` is MFMA or nothing.

    Scalar registers that do not suffice go to lanes of vector registers, not to memory, and are no spill here.

    Raises:
        CompilationError: when Triton refuses, or has no compiler for AMD.
    """
    compiled = compile_for(launch, GPUTarget("hip", device.architecture, 64), device.architecture)
    text = compiled.asm["amdgcn"]
    return Assembly(
        registers=int(re.findall(r"\.vgpr_count: +(\d+)", text)[0]),
        stack=int(re.findall(r"\.private_segment_fixed_size: +(\d+)", text)[0]),
        spilled=len(re.findall(r"^\s+scratch_(?:load|store)", text, re.MULTILINE)),
        shared=compiled.metadata.shared,
        products=products_of(compiled.asm["ttir"]),
        tensor_core=("MFMA",) if "v_mfma" in text else (),
        widest_load=_widest("load", text),
        widest_store=_widest("store", text),
    )


def _widest(way: str, text: str) -> int:
    """Bits of the widest access of a lane to global memory."""
    names = re.findall(rf"(?:global|buffer|flat)_{way}_(\w+)", text)
    return max((_BITS.get(name, 0) for name in names), default=0)
