"""Fold LayerNorm's affine into the next linear layer, in weight space.

``LN(x) W^T + b = x_hat (gamma * W)^T + (b + W beta)``, where ``x_hat`` is the row without its affine. Kernels then only
normalise, and gamma's and beta's gradients come from the weight's, without separate sums over tokens.
"""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from crossmae_kernels.environment import Implementation
from crossmae_kernels.norm_folding import ops, reference
from crossmae_kernels.norm_folding.config import refusals
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.dispatch import choose


@overload
def fold_norm(
    weight: Tensor | Sequence[Tensor],
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]: ...
@overload
def fold_norm(
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor | None]: ...
def fold_norm(
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear layer for ``x_hat``, differentiably.

    Weights are folded in their own dtype, even under autocast: only the results are rounded, to ``dtype``. If there is
    nothing to fold, they are the cast arguments. Several weights are folded directly into one stack for a batched
    product, without being stacked first.

    Args:
        weight: ``(O, I)``, or a sequence of n of them; all other tensors and the results are then stacked.
        bias: ``(O,)``, or ``(n, O)``, or None.
        norm_weight: LayerNorm scale ``(I,)``, or ``(n, I)``; 1 if None.
        norm_bias: LayerNorm shift ``(I,)``, or ``(n, I)``; 0 if None.
        dtype: of the results; the weight's own if None. Gradients have the arguments' dtypes.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        ``(O, I)`` and ``(O,)``, or ``(n, O, I)`` and ``(n, O)``; the second is None if neither ``bias`` nor
        ``norm_bias`` is given.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape or device, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("fold_norm")
    several = isinstance(weight, list | tuple)
    if several:
        weights = checks.tensors("weight", weight, "O I")
    else:
        checks.tensor("weight", weight, "O I")
        weights = [weight]  # type: ignore[list-item]
    stack = f"{len(weights)} " if several else ""
    checks.optional("bias", bias, stack + "O")
    checks.optional("norm_weight", norm_weight, stack + "I")
    checks.optional("norm_bias", norm_bias, stack + "I")
    if dtype is not None:
        checks.dtype("dtype", dtype)
    checks.raise_if_any()
    dtypes = sorted({str(each.dtype) for each in weights})
    checks.that(len(dtypes) == 1, f"weight must hold tensors of one dtype, got {' and '.join(dtypes)}")
    checks.raise_if_any()
    first = weights[0]
    dtype = first.dtype if dtype is None else dtype
    reasons = refusals(weights, (bias, norm_weight, norm_bias), dtype)
    if choose("fold_norm", impl, reasons, worthwhile=first.is_cuda) == "triton":
        if several:
            return ops.fold_norms(weights, bias, norm_weight, norm_bias, dtype)
        return ops.fold_norm(first, bias, norm_weight, norm_bias, dtype)
    return reference.fold_norm(torch.stack(weights) if several else first, bias, norm_weight, norm_bias, dtype)
