"""LayerNorm's affine folded into the linear layer behind it, in weight space.

``LN(x) W^T + b = x_hat (gamma * W)^T + (b + W beta)``, where ``x_hat`` is the row without its affine. Kernels then only
normalise, and gamma's and beta's gradients come from the weight's: no sums over tokens of their own.
"""

from typing import overload

import torch
from torch import Tensor

from crossmae_kernels.common.autocast import cast_optional
from crossmae_kernels.common.checks import ArgumentChecks
from crossmae_kernels.common.folding import ops, reference
from crossmae_kernels.common.implementation import Implementation, choose
from crossmae_kernels.common.machine import KERNEL_DTYPES, dtype_refusals, machine_refusals


@overload
def fold_norm(
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]: ...
@overload
def fold_norm(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor | None]: ...
def fold_norm(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear layer that takes ``x_hat``, differentiable.

    Under autocast too master weights are folded as they are: nothing is rounded but the results, to ``dtype``. Where
    there is nothing to fold, they are the arguments, cast.

    Args:
        weight: ``(..., O, I)``.
        bias: ``(..., O)`` or None.
        norm_weight: LayerNorm scale ``(..., I)``; 1 where None.
        norm_bias: LayerNorm shift ``(..., I)``; 0 where None.
        dtype: of the results; the weight's own where None. Gradients have the dtypes of the arguments.
        impl: who serves the call.

    Returns:
        ``(..., O, I)`` and ``(..., O)``; None for the second where neither ``bias`` nor ``norm_bias`` is there.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape or device, before any work.
        RuntimeError: with ``impl="triton"`` when the kernels cannot serve the call, with every reason.
    """
    checks = ArgumentChecks("fold_norm")
    checks.tensor("weight", weight, "... O I")
    checks.optional("bias", bias, "... O")
    checks.optional("norm_weight", norm_weight, "... I")
    checks.optional("norm_bias", norm_bias, "... I")
    checks.that(dtype is None or dtype.is_floating_point, f"dtype must be floating point or None, got {dtype}")
    checks.raise_if_any()
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        checks.that(
            vector is None or vector.shape[:-1] == weight.shape[:-2],
            f"{name} must have the leading dimensions of weight, {tuple(weight.shape[:-2])}, got "
            f"{() if vector is None else tuple(vector.shape[:-1])}",
        )
    checks.raise_if_any()
    dtype = weight.dtype if dtype is None else dtype
    refusals = machine_refusals(weight.device) + dtype_refusals(weight)
    if dtype not in KERNEL_DTYPES:
        refusals.append(f"kernels fold to float32, float16 or bfloat16, not to {dtype}")
    chosen = choose("fold_norm", impl, refusals, worthwhile=weight.is_cuda)
    if norm_weight is None and norm_bias is None:
        return weight.to(dtype), cast_optional(bias, dtype)
    if chosen == "reference":
        return reference.fold_norm(weight, bias, norm_weight, norm_bias, dtype)
    return ops.fold_norm(weight, bias, norm_weight, norm_bias, dtype)
