"""The MLP of a pre-norm transformer block, residual included."""

from torch import Tensor

from crossmae_kernels.common.checks import ArgumentChecks
from crossmae_kernels.common.implementation import NO_KERNEL, Implementation, choose
from crossmae_kernels.mlp import reference


def mlp(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float = 1e-6,
    impl: Implementation = "auto",
) -> Tensor:
    """``x + fc2(gelu(fc1(LayerNorm(x))))`` with exact (erf) GELU.

    Args:
        x: ``(..., D)``.
        norm_weight: LayerNorm scale ``(D,)``; 1 where None.
        norm_bias: LayerNorm shift ``(D,)``; 0 where None.
        fc1_weight: ``(H, D)``.
        fc1_bias: ``(H,)`` or None.
        fc2_weight: ``(D, H)``.
        fc2_bias: ``(D,)`` or None.
        eps: added to the variance.
        impl: who serves the call.

    Returns:
        ``(..., D)``.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape or device, before any work.
    """
    checks = ArgumentChecks("mlp")
    checks.tensor("x", x, "... D")
    checks.optional("norm_weight", norm_weight, "D")
    checks.optional("norm_bias", norm_bias, "D")
    checks.tensor("fc1_weight", fc1_weight, "H D")
    checks.optional("fc1_bias", fc1_bias, "H")
    checks.tensor("fc2_weight", fc2_weight, "D H")
    checks.optional("fc2_bias", fc2_bias, "D")
    checks.raise_if_any()
    choose("mlp", impl, NO_KERNEL)
    return reference.mlp(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps)
