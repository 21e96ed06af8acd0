"""The linear layers around attention: norm -> linear in front of it, linear -> residual behind it."""

from typing import Literal, get_args

from torch import Tensor

from crossmae_kernels.common.checks import ArgumentChecks
from crossmae_kernels.common.implementation import NO_KERNEL, Implementation, choose
from crossmae_kernels.projection import reference

Activation = Literal["gelu"]


def norm_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    activation: Activation | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """``activation(LayerNorm(x) weight^T + bias)``.

    Args:
        x: ``(..., I)``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        norm_weight: LayerNorm scale ``(I,)``; 1 unless given.
        norm_bias: LayerNorm shift ``(I,)``; 0 unless given.
        eps: added to the variance.
        activation: ``"gelu"`` (exact, by erf) or None.
        impl: who serves the call.

    Returns:
        ``(..., O)``.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape or device, before any work.
    """
    checks = ArgumentChecks("norm_linear")
    checks.tensor("x", x, "... I")
    checks.tensor("weight", weight, "O I")
    checks.optional("bias", bias, "O")
    checks.optional("norm_weight", norm_weight, "I")
    checks.optional("norm_bias", norm_bias, "I")
    checks.that(
        activation is None or activation in get_args(Activation),
        f"activation must be 'gelu' or None, got {activation!r}",
    )
    checks.raise_if_any()
    choose("norm_linear", impl, NO_KERNEL)
    return reference.norm_linear(x, weight, bias, norm_weight, norm_bias, eps, activation)


def linear_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    residual_ids: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """``residual + x weight^T + bias``, the residual optionally gathered from a table.

    Args:
        x: ``(..., I)``; ``(B, Q, I)`` with ``residual_ids``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        residual: ``(..., O)``, or a table ``(N, O)`` of which ``residual_ids`` picks the rows.
        residual_ids: int64 or int32 ``(B, Q)``, each in ``[0, N)``; only with a table.
        impl: who serves the call.

    Returns:
        ``(..., O)``.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape, device or range, before any work.
    """
    checks = ArgumentChecks("linear_residual")
    checks.tensor("x", x, "... I" if residual_ids is None else "B Q I")
    checks.tensor("weight", weight, "O I")
    checks.optional("bias", bias, "O")
    if residual_ids is None:
        checks.tensor("residual", residual, "... O")
        checks.raise_if_any()
        checks.that(
            residual.shape[:-1] == x.shape[:-1],
            f"residual must have the leading dimensions of x, {tuple(x.shape[:-1])}, got {tuple(residual.shape[:-1])}",
        )
    else:
        checks.tensor("residual", residual, "N O")
        checks.ids("residual_ids", residual_ids, "B Q", limit=checks.size("N"))
    checks.raise_if_any()
    choose("linear_residual", impl, NO_KERNEL)
    return reference.linear_residual(x, weight, bias, residual, residual_ids)
