"""What others measured, and where they published it.

An autotuned kernel is predicted with each candidate, and the fastest counts, as it did for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.predictions import kernels
from crossmae_kernels.audit.devices import Device
from crossmae_kernels.primitives.persistent_gemm import persistent_gemm_kernel

Tiles = tuple[int, ...]
Launcher = Callable[[Device, Tiles], None]


@dataclass(frozen=True)
class Published:
    """A measurement."""

    name: str
    device: str
    source: str
    rate: float
    """As published, in ``unit``."""
    work: float
    """Operations or bytes that the rate counts."""
    unit: str
    launch: Launcher
    candidates: tuple[Tiles, ...]
    fitted: bool = False
    """Whether a constant of the device was fitted to it; the others test the predictions."""

    @property
    def microseconds(self) -> float:
        """The time that the rate stands for."""
        return self.work / (self.rate * {"TFLOPS": 1e6, "GB/s": 1e3}[self.unit])


def _softmax(columns: int, device: Device, tiles: Tiles) -> None:
    """As many programs as fit, with 8 warps each; ``tiles`` holds the registers of a thread."""
    rows, block = 4096, triton.next_power_of_2(columns)
    resident = min(device.warps // 8, 65536 // (256 * tiles[0]))
    x = torch.empty(rows, columns)
    kernels.softmax_kernel[(min(rows, resident * device.limits.multiprocessors),)](
        x, torch.empty_like(x), rows, columns, columns, columns, BLOCK=block, STAGES=2, num_warps=8
    )


def _matmul(
    m: int, n: int, k: int, transposed: bool, persistent: bool, device: Device, tiles: Tiles
) -> None:  # fmt: skip
    block_m, block_n, block_k, stages, warps = tiles
    a, out = torch.empty(m, k, dtype=torch.float16), torch.empty(m, n, dtype=torch.float16)
    b = torch.empty(n, k, dtype=torch.float16).T if transposed else torch.empty(k, n, dtype=torch.float16)
    count = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    kernel = kernels.persistent_matmul_kernel if persistent else kernels.matmul_kernel
    programs = min(count, device.limits.multiprocessors) if persistent else count
    kernel[(programs,)](
        a, b, out, m, n, k, a.stride(0), b.stride(0), b.stride(1),
        M=block_m, N=block_n, K=block_k, GROUP=8, num_stages=stages, num_warps=warps,
    )  # fmt: skip


def _descriptors(m: int, n: int, k: int, device: Device, tiles: Tiles) -> None:
    """This package's kernel, which reads both operands by TMA."""
    block_m, block_n, block_k, stages, warps = tiles
    a, b = torch.empty(m, k, dtype=torch.float16), torch.empty(n, k, dtype=torch.float16)
    persistent_gemm_kernel[(device.limits.multiprocessors,)](
        TensorDescriptor(a, [m, k], [k, 1], [block_m, block_k]),
        TensorDescriptor(b, [n, k], [k, 1], [block_n, block_k]),
        None, None, None, torch.empty(m, n, dtype=torch.float16), None, 0, m, 0,
        OUTER=n, INNER=k, GELU=False, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, GROUP=8, SPECIALIZED=False,
        num_stages=stages, num_warps=warps,
    )  # fmt: skip


def _attention(heads: int, length: int, width: int, causal: bool, device: Device, tiles: Tiles) -> None:
    block_m, block_n, stages, warps = tiles
    q, k, v, out = (torch.empty(heads, length, width, dtype=torch.float16) for _ in range(4))
    kernels.attention_kernel[(length // block_m, heads)](
        q, k, v, out, length, 0.1, WIDTH=width, M=block_m, N=block_n, CAUSAL=causal, num_stages=stages, num_warps=warps
    )


DOCS_A100 = "Triton's documentation, tutorial {}, table in its build; A100, assumed to be the 40 GB one"
TRITON_03 = ((128, 128, 32, 4, 4), (128, 64, 32, 4, 4))
LARGE = ((128, 256, 64, 3, 8),)
SMALL = ((128, 128, 64, 2, 8),)
WIDE_HEADS = ((128, 128, 3, 8), (128, 64, 3, 8))
NARROW_HEADS = ((128, 64, 3, 4), (128, 128, 3, 8))


def _softmax_row(columns: int, registers: int, rate: float, fitted: bool = False) -> Published:
    return Published(
        f"softmax of 4096 x {columns}, float32", "a100_40g", DOCS_A100.format("02"), rate,
        2 * 4096 * columns * 4, "GB/s", partial(_softmax, columns), ((registers,),), fitted,
    )  # fmt: skip


def _square(size: int, rate: float, fitted: bool = False) -> Published:
    return Published(
        f"matmul of {size}^3", "a100_40g", DOCS_A100.format("03"), rate, 2 * size**3, "TFLOPS",
        partial(_matmul, size, size, size, False, False), TRITON_03, fitted,
    )  # fmt: skip


def _thin(
    device: str, rate: float, source: str, persistent: bool = False, inner: int = 512,
    candidates: tuple[Tiles, ...] = LARGE, fitted: bool = False,
) -> Published:  # fmt: skip
    return Published(
        f"matmul of 8192 x 8192 x {inner}" + (", persistent" if persistent else ""), device, source, rate,
        2 * 8192 * 8192 * inner, "TFLOPS", partial(_matmul, 8192, 8192, inner, True, persistent), candidates, fitted,
    )  # fmt: skip


def _heads(
    device: str, length: int, width: int, rate: float, source: str, heads: int, causal: bool = False,
    candidates: tuple[Tiles, ...] = WIDE_HEADS, fitted: bool = False,
) -> Published:  # fmt: skip
    work = 4 * heads * length**2 * width * (0.5 if causal else 1)
    return Published(
        f"attention of {length}, {heads} heads of {width}" + (", causal" if causal else ""), device, source, rate,
        work, "TFLOPS", partial(_attention, heads, length, width, causal), candidates, fitted,
    )  # fmt: skip


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

PUBLISHED = (
    _softmax_row(1024, 32, 994.0),
    _softmax_row(2048, 32, 1281.0),
    _softmax_row(4096, 40, 1395.7, fitted=True),
    _softmax_row(8192, 64, 1442.3),
    _square(1024, 99.9),
    _square(2048, 190.7),
    _square(3072, 213.7),
    _square(4096, 220.0, fitted=True),
    _thin("a100_40g", 167.2, _A100_09),
    _thin("a100_40g", 168.2, _A100_09, persistent=True),
    _thin("h100", 449.9, _H100_09, fitted=True),
    _thin("h100", 490.2, _H100_09, persistent=True, fitted=True),
    Published(
        "matmul of 8192 x 8192 x 512, persistent, TMA", "h100", _H100_09, 527.4, 2 * 8192 * 8192 * 512, "TFLOPS",
        partial(_descriptors, 8192, 8192, 512), ((128, 256, 64, 3, 8),),
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
    _thin("b200", 711.0, _B200_09),
    _thin("rtx5090", 157.9, _5090_09, candidates=SMALL),
    _thin("rtx5090", 144.9, _5090_09, persistent=True, candidates=SMALL),
    _heads("rtx3090", 1024, 64, 60.2, _3090, 128, candidates=NARROW_HEADS),
    _heads("rtx3090", 2048, 64, 71.1, _3090, 128, candidates=NARROW_HEADS, fitted=True),
    _heads("rtx3090", 1024, 64, 48.0, _3090, 128, causal=True, candidates=NARROW_HEADS),
    _heads("rtx3090", 2048, 64, 61.1, _3090, 128, causal=True, candidates=NARROW_HEADS),
)  # fmt: skip
