"""Published rates of operators that come without machine code: cuBLAS's products, copies of CUDA and BabelStream."""

import torch

from benchmarks.predictions.measurement import Published
from crossmae_kernels.audit.operations import Operation


def fill(bytes_: int) -> Operation:
    """Zeros."""
    return Operation("fill_", False, torch.float32, 0, bytes_)


def _products(device: str, source: str, rates: dict[int, float], name: str = "float16") -> tuple[Published, ...]:
    dtype = getattr(torch, name)
    return tuple(
        Published(
            f"cuBLAS, {size}^3, {name}", device, source, rate, 2 * size**3, "TFLOPS",
            operations=(Operation("mm", False, dtype, 2 * size**3, 3 * 2 * size**2),),
        )
        for size, rate in rates.items()
    )  # fmt: skip


def _copy(device: str, name: str, bytes_: float, rate: float, source: str, fitted: bool = False) -> Published:
    moving = Operation("copy_", False, torch.float32, 0, round(bytes_))
    return Published(name, device, source, rate, bytes_, "GB/s", operations=(moving,), fitted=fitted)


_DATABASE = "zzc0721/torch-performance-test-data, issue {}, torch.matmul"
_MLI = "mli/transformers-benchmarks, issue 4, torch.matmul"
_DOCS = "Triton's documentation, tutorial 03, table in its build at commit 001d977 of branch gh-pages, column cuBLAS"
_LEARN = "gau-nernst/learn-cuda, 02b_matmul_sm80/README.md, A100 80GB PCIe"
_TURSA = "BabelStream 5.0's output on an A100-SXM4-80GB of Tursa, in a tender's README; its address was not recorded"
_POLARIS = "argonne-lcf/ALCFBeginnersGuide, polaris/02_profiling.md, A100-SXM4-40GB"
_NVL = "BabelStream 5.0's output on an H100 NVL; its address was not recorded"
_VOLTAGE = "aigatech/vpbenchmarking, README, 'GPU D2D (HBM3)'; 512 MiB assumed"
_NCCL = "NVIDIA/nccl issue 1264, p2pBandwidthLatencyTest, first GPU with itself"
_H200 = "output of hbm_bandwidth.cu on an H200 in a README; 512 MiB assumed; its address was not recorded"
_4090 = "tinygrad/open-gpu-kernel-modules issue 6, p2pBandwidthLatencyTest, first GPU with itself"
_5090 = "NVIDIA/cccl pull request 9881, numbers of 16 bytes"
_DOUBLES = 8 * 2**25

LIBRARIES = (
    *_products("a100_pcie", _DOCS, {1024: 104.9, 2048: 217.9, 3072: 208.9, 4096: 218.2}),
    *_products("a100_pcie", _LEARN, {2048: 151.15, 4096: 227.49, 8192: 228.16}, "bfloat16"),
    *_products("a100_40g", _DATABASE.format(108), {1024: 83.66, 2048: 214.73, 4096: 241.49, 8192: 197.51}),
    *_products("h100", _DATABASE.format(79), {1024: 179.13, 2048: 645.12, 4096: 760.04, 8192: 736.19}),
    *_products("rtx4090", _DATABASE.format(78), {1024: 106.10, 2048: 159.38, 4096: 168.38, 8192: 155.50}),
    *_products("rtx4090", _MLI, {2048: 167.112, 8192: 158.596}),
    *_products("rtx5090", _DATABASE.format(124), {1024: 139.18, 2048: 173.86, 4096: 217.99, 8192: 223.98}),
    *_products("l4", _DATABASE.format(120), {1024: 54.81, 2048: 68.83, 4096: 53.02, 8192: 53.80}),
    *_products("a40", _DATABASE.format(185), {1024: 85.02, 2048: 94.31, 4096: 113.51, 8192: 108.47}),
    *_products("a10g", _DATABASE.format(126), {1024: 49.00, 2048: 60.62, 4096: 62.46, 8192: 65.67}),
    _copy("a100", "BabelStream, copy", 2 * _DOUBLES, 1709.4, _TURSA, fitted=True),
    _copy("a100", "BabelStream, triad", 3 * _DOUBLES, 1724.8, _TURSA, fitted=True),
    _copy("a100_40g", "BabelStream, copy", 2 * _DOUBLES, 1400.3, _POLARIS, fitted=True),
    _copy("a100_40g", "BabelStream, triad", 3 * _DOUBLES, 1377.5, _POLARIS, fitted=True),
    _copy("h100", "copy of memory", 2 * 2**29, 2903, _VOLTAGE),
    _copy("h100", "copy of memory", 2 * 160e6, 2474.8, _NCCL),
    _copy("h100_nvl", "BabelStream, copy", 2 * _DOUBLES, 3055.6, _NVL),
    _copy("h100_nvl", "BabelStream, triad", 3 * _DOUBLES, 3303.8, _NVL),
    _copy("h200", "copy of memory", 2 * 2**29, 3932.9, _H200),
    _copy("h200", "copying kernel", 2 * 2**29, 3743.4, _H200),
    _copy("rtx4090", "copy of memory", 2 * 160e6, 918.31, _4090),
    _copy("rtx5090", "triad of CUB", 3 * 16 * 2**28, 1573, _5090),
)
