"""GPUs that others measured on: those that are audited, and some more, by the same sources."""

from dataclasses import replace

from crossmae_kernels.audit.devices import DEVICES, Device
from crossmae_kernels.runtime.device import Limits

GPUS = DEVICES | {
    device.name: device
    for device in (
        replace(DEVICES["a100"], name="a100_pcie", bandwidth=1935),
        replace(DEVICES["h100"], name="h100_nvl", bandwidth=3938, clock=1.785),
        Device("rtx5080", Limits(120, 99 * 1024, 84), 2.617, 960, 64 << 20, 512, int32_lanes=128),
    )
}
