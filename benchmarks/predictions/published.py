"""What others measured, and where they published it: kernels here, operators in ``libraries.py``.

Of tables with a row for many sizes, powers of two from 1,024 are kept, or what is said at the row.
"""

from functools import partial

import torch

from benchmarks.predictions import launchers
from benchmarks.predictions.launchers import Tiles
from benchmarks.predictions.libraries import LIBRARIES, fill
from benchmarks.predictions.measurement import Published

TRITON_03 = ((128, 128, 32, 4, 4), (128, 64, 32, 4, 4))
LARGE = ((128, 256, 64, 3, 8),)
SMALL = ((128, 128, 64, 2, 8),)
WIDE_HEADS = ((128, 128, 3, 8), (128, 64, 3, 8))
NARROW_HEADS = ((128, 64, 3, 4), (128, 128, 3, 8))


def _added(exponent: int, rate: float) -> Published:
    return Published(
        f"sum of two vectors of 2^{exponent}, float32", "a100_pcie", _DOCS.format("01", _LATER), rate,
        3 * 4 * 2**exponent, "GB/s", partial(launchers.add, 2**exponent), ((1024,),),
    )  # fmt: skip


def _softmax(columns: int, registers: int, rate: float, build: str) -> Published:
    return Published(
        f"softmax of 4096 x {columns}, float32", "a100_pcie", _DOCS.format("02", build), rate,
        2 * 4096 * columns * 4, "GB/s", partial(launchers.softmax, columns), ((registers,),),
    )  # fmt: skip


def _square(size: int, rate: float, build: str, fitted: bool = False) -> Published:
    return Published(
        f"matmul of {size}^3", "a100_pcie", _DOCS.format("03", build), rate, 2 * size**3, "TFLOPS",
        partial(launchers.matmul, size, size, size, False, False), TRITON_03, fitted=fitted,
    )  # fmt: skip


def _norm_in_passes(rows: int, columns: int, rate: float) -> Published:
    return Published(
        f"layer norm of {rows} x {columns}, float16", "rtx5080", _5080, rate, 2 * 2 * rows * columns, "GB/s",
        partial(launchers.layer_norm, rows, columns, True, torch.float16), ((min(columns // 256, 8),),),
    )  # fmt: skip


def _norm(device: str, columns: int, warps: int, microseconds: float) -> Published:
    work = 2 * 4 * 4096 * columns
    return Published(
        f"layer norm of 4096 x {columns}, float32", device, _LIGER, work / microseconds / 1e3, work, "GB/s",
        partial(launchers.layer_norm, 4096, columns, False, torch.float32), ((warps,),),
    )  # fmt: skip


def _norm_backward(columns: int, rate: float) -> Published:
    groups = 64
    return Published(
        f"layer norm's backward pass, 4096 x {columns}, float16", "a100_pcie", _DOCS.format("05", _LATER), rate,
        3 * 2 * 4096 * columns, "GB/s", partial(launchers.layer_norm_backward, 4096, columns), ((groups, 8),),
        (fill(4 * 2 * groups), *2 * [fill(2 * groups * columns)]),
    )  # fmt: skip


def _thin(
    device: str, rate: float, source: str, persistent: bool = False, inner: int = 512,
    candidates: tuple[Tiles, ...] = LARGE, fitted: bool = False,
) -> Published:  # fmt: skip
    return Published(
        f"matmul of 8192 x 8192 x {inner}" + (", persistent" if persistent else ""), device, source, rate,
        2 * 8192 * 8192 * inner, "TFLOPS", partial(launchers.matmul, 8192, 8192, inner, True, persistent), candidates,
        fitted=fitted,
    )  # fmt: skip


def _heads(
    device: str, length: int, width: int, rate: float, source: str, heads: int, causal: bool = False,
    candidates: tuple[Tiles, ...] = WIDE_HEADS, fitted: bool = False,
) -> Published:  # fmt: skip
    work = 4 * heads * length**2 * width * (0.5 if causal else 1)
    return Published(
        f"attention of {length}, {heads} heads of {width}" + (", causal" if causal else ""), device, source, rate,
        work, "TFLOPS", partial(launchers.attention, heads, length, width, causal), candidates, fitted=fitted,
    )  # fmt: skip


_DOCS = "Triton's documentation, tutorial {}, table in its build{}"
_BUILD, _LATER = " of 2024", " at commit 001d977 of branch gh-pages"
_H100_09 = "Triton's tutorial 09, timed by proton, 'TFLOPS on H100'; posted beside the 5090D's"
_A100_09 = (
    "Triton's tutorial 09, timed by proton, on a GPU whose cuBLAS kernels are 'ampere_fp16'; assumed to be an A100"
)
_B200_09 = "triton-lang/triton pull request 6217"
_5090_09 = "Triton's tutorial 09, timed by proton, 'TFLOPS on 5090D'; treated as an RTX 5090"
_TLX = "facebookexperimental/triton pull request 206, Triton's tutorial 06"
_BENCH = "pytorch/benchmark pull request 2391, Triton's attention, 16,384 tokens, assuming 16 heads; second-hand"
_FA3 = "FlashAttention-3 (arXiv 2407.08608), figure 5, Triton's bars, 16,384 tokens; second-hand"
_3090 = "flash_attn_triton, README, RTX 3090"
_5080 = "triton-lang/triton pull request 6413, Triton's tutorial 05, forward; its type is taken to be float16"
_LIGER = (
    "linkedin/Liger-Kernel, benchmark/data/{a100,h100}_all_benchmark_data.csv, 0.5.2, forward; median times, here as "
    "bandwidth of what goes in and comes out"
)

KERNELS = (
    _added(20, 819.2),  # every second power, and the largest
    _added(22, 1260.3),
    _added(24, 1560.4),
    _added(26, 1669.7),
    _added(27, 1685.8),
    _softmax(1024, 32, 994.0, _BUILD),
    _softmax(2048, 32, 1281.0, _BUILD),
    _softmax(4096, 40, 1395.7, _BUILD),
    _softmax(8192, 64, 1442.3, _BUILD),
    _softmax(1024, 32, 1073.1, _LATER),
    _softmax(2048, 32, 1273.7, _LATER),
    _softmax(4096, 40, 1385.9, _LATER),
    _softmax(8192, 64, 1432.2, _LATER),
    _square(1024, 99.9, _BUILD),
    _square(2048, 190.7, _BUILD),
    _square(3072, 213.7, _BUILD),
    _square(4096, 220.0, _BUILD, fitted=True),
    _square(1024, 83.9, _LATER),
    _square(2048, 174.8, _LATER),
    _square(3072, 190.7, _LATER),
    _square(4096, 195.7, _LATER),
    _norm("a100_pcie", 1024, 4, 28.672),
    _norm("a100_pcie", 2048, 8, 48.128),
    _norm("a100_pcie", 4096, 8, 88.064),
    _norm("a100_pcie", 8192, 16, 166.912),
    _norm("a100_pcie", 16384, 16, 322.560),
    _norm_backward(10240, 790.2),  # multiples of 2,048 from where it is slower than its calls, 200 microseconds
    _norm_backward(12288, 869.9),
    _norm_backward(14336, 920.0),
    _thin("a100_40g", 167.2, _A100_09),
    _thin("a100_40g", 168.2, _A100_09, persistent=True),
    _thin("h100", 449.9, _H100_09, fitted=True),
    _thin("h100", 490.2, _H100_09, persistent=True, fitted=True),
    Published(
        "matmul of 8192 x 8192 x 512, persistent, TMA", "h100", _H100_09, 527.4, 2 * 8192 * 8192 * 512, "TFLOPS",
        partial(launchers.descriptors, 8192, 8192, 512), ((128, 256, 64, 3, 8),),
    ),
    _heads("h100", 1024, 128, 406.8, _TLX, 128),
    _heads("h100", 2048, 128, 427.8, _TLX, 128),
    _heads("h100", 4096, 128, 459.6, _TLX, 128),
    _heads("h100", 512, 128, 329.0, _BENCH, 512),
    _heads("h100", 1024, 128, 390.0, _BENCH, 256),
    _heads("h100", 2048, 128, 434.0, _BENCH, 128),
    _heads("h100", 512, 64, 340.0, _FA3, 1024, candidates=NARROW_HEADS),
    _heads("h100", 1024, 64, 382.0, _FA3, 512, candidates=NARROW_HEADS),
    _heads("h100", 2048, 64, 396.0, _FA3, 256, candidates=NARROW_HEADS),
    _norm("h100_nvl", 1024, 4, 15.904),
    _norm("h100_nvl", 2048, 8, 26.048),
    _norm("h100_nvl", 4096, 8, 45.536),
    _norm("h100_nvl", 8192, 16, 82.976),
    _norm("h100_nvl", 16384, 16, 182.400),
    _thin("b200", 711.0, _B200_09),
    _thin("rtx5090", 157.9, _5090_09, candidates=SMALL),
    _thin("rtx5090", 144.9, _5090_09, persistent=True, candidates=SMALL),
    _norm_in_passes(4096, 1024, 732.2),
    _norm_in_passes(4096, 2048, 751.1),
    _norm_in_passes(4096, 4096, 762.0),
    _norm_in_passes(8096, 1024, 736.0),
    _norm_in_passes(8096, 2048, 769.0),
    _norm_in_passes(8096, 4096, 799.6),
    _norm_in_passes(8096, 8192, 798.6),
    _norm_in_passes(8096, 16384, 816.6),
    _heads("rtx3090", 1024, 64, 60.2, _3090, 128, candidates=NARROW_HEADS),
    _heads("rtx3090", 2048, 64, 71.1, _3090, 128, candidates=NARROW_HEADS, fitted=True),
    _heads("rtx3090", 1024, 64, 48.0, _3090, 128, causal=True, candidates=NARROW_HEADS),
    _heads("rtx3090", 2048, 64, 61.1, _3090, 128, causal=True, candidates=NARROW_HEADS),
)  # fmt: skip

PUBLISHED = KERNELS + LIBRARIES
