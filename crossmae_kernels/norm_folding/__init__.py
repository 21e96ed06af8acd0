"""LayerNorm's affine folded into the linear layer behind it, in weight space.

``LN(x) W^T + b = x_hat (gamma * W)^T + (b + W beta)``, where ``x_hat`` is the row without its affine. Kernels then only
normalise, and gamma's and beta's gradients come from the weight's: no sums over tokens of their own.
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
    """Weight and bias of the linear layer that takes ``x_hat``, differentiable.

    Master weights are folded as they are, under autocast too: only the results are rounded, to ``dtype``. Where
    there is nothing to fold, they are the arguments, cast. Several weights are folded into one stack, as a batched
    product takes them, without being stacked first.

    Args:
        weight: ``(O, I)``, or a sequence of n such, of which all other tensors and the results hold a stack.
        bias: ``(O,)``, or ``(n, O)``, or None.
        norm_weight: LayerNorm scale ``(I,)``, or ``(n, I)``; 1 where None.
        norm_bias: LayerNorm shift ``(I,)``, or ``(n, I)``; 0 where None.
        dtype: of the results; the weight's own where None. Gradients have the dtypes of the arguments.
        impl: who serves the call.

    Returns:
        ``(O, I)`` and ``(O,)``, or ``(n, O, I)`` and ``(n, O)``; None for the second where neither ``bias`` nor
        ``norm_bias`` is given.

    Raises:
        TypeError, ValueError: for arguments of the wrong type, dtype, shape or device, before any work.
        RuntimeError: with ``impl="triton"`` when the kernels cannot serve the call, with every reason.
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
