"""What surrounds a GPU: memory, and links to other GPUs of its host and of other hosts.

Sources: NVIDIA's datasheets (NVLink and PCI Express, each way) and those of DGX A100, H100 and B200 (a network card of
200 or 400 Gbit/s for every GPU). The others are
assumed to be eight per host, sharing 100 Gbit/s, and to copy through the host's memory, over PCI Express twice. Memory
is the total capacity that PyTorch's messages state.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """The surroundings of one GPU."""

    names: tuple[str, ...]
    """The GPU's names as its driver reports them."""
    memory: float
    """GiB that a process sees."""
    link: float
    """GB/s each way to GPUs of the same host."""
    network: float
    """GB/s each way to other hosts, for each GPU of a full host."""


_NVLINK_A100, _NVLINK_H100, _NVLINK_B200 = 300, 450, 900
_PCIE_4, _PCIE_5 = 32 / 2, 64 / 2
_SHARED_NETWORK = 12.5 / 8

HOSTS = {
    "a100": Host(("NVIDIA A100-SXM4-80GB",), 79.2, _NVLINK_A100, 25),
    "a100_40g": Host(("NVIDIA A100-SXM4-40GB",), 39.4, _NVLINK_A100, 25),
    "a40": Host(("NVIDIA A40",), 44.4, _PCIE_4, _SHARED_NETWORK),
    "a10g": Host(("NVIDIA A10G",), 22.0, _PCIE_4, _SHARED_NETWORK),
    "rtx3090": Host(("NVIDIA GeForce RTX 3090",), 23.7, _PCIE_4, _SHARED_NETWORK),
    "rtx4090": Host(("NVIDIA GeForce RTX 4090",), 23.6, _PCIE_4, _SHARED_NETWORK),
    "l4": Host(("NVIDIA L4",), 22.0, _PCIE_4, _SHARED_NETWORK),
    "h100": Host(("NVIDIA H100 80GB HBM3",), 79.2, _NVLINK_H100, 50),
    "h200": Host(("NVIDIA H200",), 139.8, _NVLINK_H100, 50),
    "b200": Host(("NVIDIA B200",), 178.4, _NVLINK_B200, 50),
    "rtx5090": Host(("NVIDIA GeForce RTX 5090",), 31.4, _PCIE_5, _SHARED_NETWORK),
}
"""Keys are those of ``crossmae_kernels.audit.devices.DEVICES``."""
