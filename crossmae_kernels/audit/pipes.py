"""What an instruction asks of a multiprocessor: which pipe, for how many cycles, and when its result is there."""

from dataclasses import dataclass

from crossmae_kernels.audit.devices import (
    L2_LATENCY,
    SHARED_LATENCY,
    SHUFFLE_LATENCY,
    SPECIAL_LATENCY,
    TENSOR_LATENCY,
    Device,
)
from crossmae_kernels.audit.emulation import SHARED, WARP
from crossmae_kernels.audit.machine_code import Instruction

SCHEDULERS = 4

# Each scheduler has these for itself; all four share the others.
OWN_PIPES = ("issue", "fma", "integer product", "alu", "special", "tensor cores")
PIPES = (*OWN_PIPES, "shared memory", "all tensor cores", "L2", "DRAM")

_FMA = ("FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2", "HFMA2", "HADD2", "HMUL2", "FHADD", "FHFMA")
_SPECIAL = ("MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV")
_ALU = ("IADD3", "IADD", "VIADD", "LOP3", "SHF", "LEA", "ISETP", "FSETP", "SEL", "FSEL", "FMNMX", "FMNMX3", "PRMT",
        "SGXT", "IABS", "VIMNMX", "VIMNMX3", "IMNMX", "F2FP", "I2FP", "PLOP3", "HSETP2", "HMNMX2", "P2R", "R2P", "BMSK",
        "MOV")  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of one warp's instruction."""

    pipe: str
    cycles: float
    """That the pipe is taken for."""
    latency: float = 0
    """Cycles until whoever waits for it may go on, once the pipe has begun."""
    shared: float = 0
    """Cycles of shared memory that it takes besides."""


def cost_of(instruction: Instruction, device: Device, passes: int, multiplications: int = 0) -> Cost:
    """What an instruction costs.

    Args:
        instruction: any.
        device: where.
        passes: of an access to shared memory.
        multiplications: of a UTCHMMA, whose name does not tell its shape.
    """
    name = instruction.name
    if name in ("HMMA", "HGMMA"):
        return _product(instruction, device)
    if name == "UTCHMMA":
        return Cost("all tensor cores", 2 * multiplications / device.tensor, TENSOR_LATENCY)
    if name == "LDGSTS":
        return Cost("shared memory", passes, L2_LATENCY)
    if name in SHARED:
        return Cost("shared memory", passes, SHARED_LATENCY)
    if name == "SHFL":
        return Cost("shared memory", 1, SHUFFLE_LATENCY)
    if name in _SPECIAL:
        return Cost("special", WARP * SCHEDULERS / 16, SPECIAL_LATENCY)
    if name == "IMAD":
        return Cost("integer product", WARP * SCHEDULERS / 64)
    if name in _FMA:
        return Cost("fma", WARP * SCHEDULERS / device.fp32_lanes)
    if name in _ALU:
        return Cost("alu", WARP * SCHEDULERS / device.int32_lanes)
    return Cost("issue", 0, SPECIAL_LATENCY)


def _product(instruction: Instruction, device: Device) -> Cost:
    """A warp's part of a matrix product, by its shape: ``16816`` or ``64x128x16``."""
    halved = 2 if "TF32" in instruction.modifiers else 1
    shape = next(modifier for modifier in instruction.modifiers if modifier[0].isdigit())
    if instruction.name == "HMMA":
        m, n, k = 16, 8, int(shape[3:])
        rate = device.tensor / SCHEDULERS * device.mma_sync
        return Cost("tensor cores", 2 * m * n * k * halved / rate, TENSOR_LATENCY)
    m, n, k = (int(extent) for extent in shape.split("x"))
    # Four warps share the product and what it reads from shared memory: B, and A where registers don't hold it.
    from_registers = instruction.operands[1].startswith("R")
    read = 2 * halved * k * (n + (0 if from_registers else m))
    cycles = 2 * m * n * k * halved / device.tensor
    return Cost("tensor cores", cycles, cycles + TENSOR_LATENCY, read / 128 / SCHEDULERS)
