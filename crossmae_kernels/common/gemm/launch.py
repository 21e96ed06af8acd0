"""From tensors to launches of the matrix product."""

from dataclasses import asdict

import torch
from torch import Tensor

from crossmae_kernels.common.gemm import kernels
from crossmae_kernels.common.gemm.config import GROUP, Tiles, candidates, tiles
from crossmae_kernels.common.launch import blocks, on_device_of, unit_stride, unit_stride_optional
from crossmae_kernels.common.machine import shared_memory
from crossmae_kernels.common.precision import input_precision
from crossmae_kernels.common.tuning import tuned


def gemm(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool = False,
    hidden: Tensor | None = None,
    residual: Tensor | None = None,
    residual_ids: Tensor | None = None,
) -> Tensor:
    """``activation(a weight^T + bias) + residual``, rows ``(R, I)`` -> ``(R, O)`` in the residual's dtype, or a's.

    Args:
        a: ``(R, I)``, unit stride.
        weight: ``(O, I)`` in the dtype of ``a``.
        bias: ``(O,)`` or None.
        gelu: whether the activation is GELU; there is none otherwise.
        hidden: ``(R, O)``, contiguous, written with what goes into the activation; or None.
        residual: ``(R, O)``, or a table ``(N, O)``, unit stride; or None.
        residual_ids: int64 or int32 ``(R,)``, contiguous; only with a table.
    """
    rows, inner = a.shape
    outer = len(weight)
    precision = input_precision(a.dtype)
    weight, bias = unit_stride(weight), unit_stride_optional(bias)
    out = torch.empty(rows, outer, dtype=a.dtype if residual is None else residual.dtype, device=a.device)
    if not out.numel():
        return out

    def run(choice: Tiles) -> None:
        sizes = {name.upper() if name.startswith("block") else name: size for name, size in asdict(choice).items()}
        kernels.gemm[(blocks(rows, choice.block_m) * blocks(outer, choice.block_n),)](
            a, weight, bias, residual, residual_ids, out, hidden,
            a.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0),
            rows, 0 if residual is None else len(residual),
            OUTER=outer, INNER=inner, GELU=gelu, GROUP=GROUP, PRECISION=precision, **sizes,
        )  # fmt: skip

    shape = (outer, inner, a.element_size(), shared_memory(a.device))
    with on_device_of(a):
        epilogue = (gelu, hidden is not None, residual is not None, residual_ids is not None, str(out.dtype))
        key = (outer, inner, str(a.dtype), precision, *epilogue)
        run(tuned("gemm", key, tiles(*shape), lambda: candidates(*shape), run, a.device))
    return out
