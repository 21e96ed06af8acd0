"""What launches the kernels of published measurements, with shapes and tiles as they were."""

from collections.abc import Callable

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.predictions import kernels
from crossmae_kernels.audit.devices import Device
from crossmae_kernels.primitives.persistent_gemm import persistent_gemm_kernel

Tiles = tuple[int, ...]
Launcher = Callable[[Device, Tiles], None]


def add(count: int, device: Device, tiles: Tiles) -> None:
    """``count`` numbers in float32, so many to a program."""
    x = torch.empty(count)
    grid = (triton.cdiv(count, tiles[0]),)
    kernels.add_kernel[grid](x, torch.empty_like(x), torch.empty_like(x), count, BLOCK=tiles[0])


def softmax(columns: int, device: Device, tiles: Tiles) -> None:
    """As many programs as fit, with 8 warps each; ``tiles`` holds the registers of a thread."""
    rows, block = 4096, triton.next_power_of_2(columns)
    resident = min(device.warps // 8, 65536 // (256 * tiles[0]))
    x = torch.empty(rows, columns)
    kernels.softmax_kernel[(min(rows, resident * device.limits.multiprocessors),)](
        x, torch.empty_like(x), rows, columns, columns, columns, BLOCK=block, STAGES=2, num_warps=8
    )


def matmul(
    m: int, n: int, k: int, transposed: bool, persistent: bool, device: Device, tiles: Tiles
) -> None:  # fmt: skip
    """In float16; ``b`` may be the transpose of a matrix in memory, programs may stay and take tiles in turn."""
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


def descriptors(m: int, n: int, k: int, device: Device, tiles: Tiles) -> None:
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


def attention(heads: int, length: int, width: int, causal: bool, device: Device, tiles: Tiles) -> None:
    """In float16, ``heads`` of all images."""
    block_m, block_n, stages, warps = tiles
    q, k, v, out = (torch.empty(heads, length, width, dtype=torch.float16) for _ in range(4))
    kernels.attention_kernel[(length // block_m, heads)](
        q, k, v, out, length, 0.1, WIDTH=width, M=block_m, N=block_n, CAUSAL=causal, num_stages=stages, num_warps=warps
    )


def layer_norm(rows: int, columns: int, in_passes: bool, dtype: torch.dtype, device: Device, tiles: Tiles) -> None:
    """So many warps to a row."""
    x, weight, means = torch.empty(rows, columns, dtype=dtype), torch.empty(columns, dtype=dtype), torch.empty(rows)
    kernel = kernels.layer_norm_in_passes_kernel if in_passes else kernels.layer_norm_kernel
    kernel[(rows,)](
        x, torch.empty_like(x), weight, torch.empty_like(weight), means, torch.empty_like(means), columns, 1e-5,
        BLOCK=triton.next_power_of_2(columns), num_warps=tiles[0],
    )  # fmt: skip


def layer_norm_backward(rows: int, columns: int, device: Device, tiles: Tiles) -> None:
    """In float16; ``tiles``: groups of rows, and warps to a row."""
    groups, warps = tiles
    x, weight = torch.empty(rows, columns, dtype=torch.float16), torch.empty(columns, dtype=torch.float16)
    sums, means = torch.empty(groups, columns, dtype=torch.float16), torch.empty(rows)
    kernels.layer_norm_backward_kernel[(rows,)](
        x, torch.empty_like(x), torch.empty_like(x), weight, means, torch.empty_like(means), sums,
        torch.empty_like(sums), torch.empty(2 * groups, dtype=torch.int32), columns,
        GROUPS=groups, BLOCK=triton.next_power_of_2(columns), num_warps=warps,
    )  # fmt: skip
    kernels.group_sums_kernel[(triton.cdiv(columns, 128),)](
        sums, torch.empty_like(sums), weight, torch.empty_like(weight), groups, columns, M=32, N=128
    )
