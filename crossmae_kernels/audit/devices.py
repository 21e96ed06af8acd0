"""GPUs, as their makers and those who took them apart describe them.

Sources: NVIDIA's datasheets and architecture whitepapers (multiprocessors, boost clock, bandwidth, L2, dense rate of
tensor cores with float32 sums, in operations a cycle: the rate over multiprocessors and clock); the CUDA programming
guide, tables of compute capabilities and of arithmetic throughput (limits, lanes); Luo et al., arXiv 2402.13499
(latencies; that Hopper's ``mma.sync`` reaches some 63 % of its rate). NVIDIA publishes an L2 bandwidth for A100 alone,
5,120 bytes a cycle; others are taken to have as much for each multiprocessor.
"""

from dataclasses import dataclass

from crossmae_kernels.runtime.device import Limits


@dataclass(frozen=True)
class Device:
    """A GPU. Rates are for one multiprocessor and cycle unless they say otherwise."""

    name: str
    limits: Limits
    clock: float
    """Boost, in GHz."""
    bandwidth: float
    """Of DRAM, in GB/s."""
    l2: int
    """Bytes of L2 cache."""
    tensor: int
    """Operations of tensor cores in 16 bits, a multiplication and an addition being two."""
    warps: int = 48
    """That fit at once, with 65,536 registers."""
    blocks: int = 24
    """Programs that fit at once."""
    shared: int = 100 * 1024
    """Bytes of shared memory for all programs together; each takes 1 KiB more than it asks for."""
    fp32_lanes: int = 128
    int32_lanes: int = 64
    l2_bytes: float = 5120 / 108
    mma_sync: float = 1.0
    """Share of the rate that is reached by instructions of a warp."""
    # Fitted to published times, and nothing else is (``predictions.py``).
    bandwidth_share: float = 0.90
    """Of DRAM's bandwidth, what a long copy reaches."""
    clock_share: float = 0.90
    """Of the boost clock, what lasts under load."""
    launch: float = 3.0
    """Microseconds from the end of one launch to the first instruction of the next."""


@dataclass(frozen=True)
class AmdDevice:
    """A GPU that kernels are compiled for and that nothing is predicted of."""

    name: str
    limits: Limits
    """Tiles are chosen by these: Ampere's, in so much shared memory, which AMD calls local data share."""
    architecture: str


def _hopper(name: str, bandwidth: float) -> Device:
    return Device(
        name, Limits(90, 227 * 1024, 132), 1.83, bandwidth, 50 << 20, 4096, warps=64, blocks=32, shared=228 * 1024,
        mma_sync=0.63, clock_share=0.97,
    )  # fmt: skip


def _a100(name: str, bandwidth: float) -> Device:
    return Device(
        name, Limits(80, 163 * 1024, 108), 1.41, bandwidth, 40 << 20, 2048, warps=64, blocks=32, shared=164 * 1024,
        fp32_lanes=64, bandwidth_share=0.87, clock_share=0.82,
    )  # fmt: skip


DEVICES = {
    device.name: device
    for device in (
        _a100("a100", 2039),
        _a100("a100_40g", 1555),
        Device("a40", Limits(86, 99 * 1024, 84), 1.74, 696, 6 << 20, 1024, blocks=16),
        Device("a10g", Limits(86, 99 * 1024, 80), 1.71, 600, 6 << 20, 512, blocks=16),
        Device("rtx3090", Limits(86, 99 * 1024, 82), 1.695, 936, 6 << 20, 512, blocks=16, clock_share=1.05),
        Device("rtx4090", Limits(89, 99 * 1024, 128), 2.52, 1008, 72 << 20, 512),
        Device("l4", Limits(89, 99 * 1024, 58), 2.04, 300, 48 << 20, 1024),
        _hopper("h100", 3350),
        _hopper("h200", 4800),
        Device(
            "b200", Limits(100, 227 * 1024, 148), 1.85, 8000, 126 << 20, 8192, warps=64, blocks=32, shared=228 * 1024
        ),
        Device("rtx5090", Limits(120, 99 * 1024, 170), 2.407, 1792, 96 << 20, 512, int32_lanes=128),
    )
}

# The one that stands for its architecture where nobody names another.
USUAL = {
    DEVICES[name].limits.capability: DEVICES[name] for name in ("a100", "a40", "rtx4090", "h100", "b200", "rtx5090")
}

# AMD's CDNA 3 whitepaper. Kernels are not launched on AMD's GPUs; this one shows how far Triton compiles them.
MI300X = AmdDevice("mi300x", Limits(80, 64 * 1024, 304), "gfx942")

# Cycles from issue to result of what has no fixed latency, alike within a few on all of these architectures.
SHARED_LATENCY, L2_LATENCY, DRAM_LATENCY, SHUFFLE_LATENCY, SPECIAL_LATENCY = 29, 262, 480, 24, 23
TENSOR_LATENCY, SYNCHRONIZATION_LATENCY = 33, 20
