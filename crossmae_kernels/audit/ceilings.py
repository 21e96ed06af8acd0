"""How long an operator of a library takes, by what it multiplies and moves and by what a device can do at most.

For what comes without machine code: cuBLAS's products, PyTorch's elementwise kernels. It takes one launch, reads and
writes each tensor once and multiplies at a share of the tensor cores' rate that large products reach; what limits it
is the slower of the two. Nothing here was fitted to these operators' times.
"""

import torch

from crossmae_kernels.audit.devices import Device
from crossmae_kernels.audit.operations import Operation

# Of the rate under load, what large products of cuBLAS reach.
PRODUCT_SHARE = 0.8
_IN_16_BITS = (torch.bfloat16, torch.float16)


def rate(device: Device, dtype: torch.dtype) -> float:
    """FLOPs a microsecond, of tensor cores in 16 bits and of lanes in float32 and wider."""
    a_cycle = device.tensor if dtype in _IN_16_BITS else 2 * device.fp32_lanes
    return a_cycle * device.limits.multiprocessors * device.clock * device.clock_share * 1e3


def bandwidth(device: Device) -> float:
    """Bytes of DRAM a microsecond."""
    return device.bandwidth * device.bandwidth_share * 1e3


def estimate(operation: Operation, device: Device) -> tuple[float, str]:
    """Microseconds of one launch, and what limits it."""
    multiplying = operation.flops / (PRODUCT_SHARE * rate(device, operation.dtype))
    moving = operation.bytes / bandwidth(device)
    if moving >= multiplying:
        return device.launch + moving, "DRAM"
    return device.launch + multiplying, "tensor cores" if operation.dtype in _IN_16_BITS else "fma"
