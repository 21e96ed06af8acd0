"""The linear layers around attention: norm -> linear before it, linear -> residual after it."""

from typing import Literal, get_args

from torch import Tensor

from crossmae_kernels.environment import Implementation
from crossmae_kernels.projection import ops, reference
from crossmae_kernels.projection.config import linear_residual_refusals
from crossmae_kernels.runtime.autocast import cast, compute_dtype
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.cpu_linear import LINEAR
from crossmae_kernels.runtime.device import norm_refusals
from crossmae_kernels.runtime.dispatch import choose

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

    The kernels fold the norm's scale and shift into weight and bias. For the backward pass they save, instead of ``x``,
    normalised rows in the compute dtype, a float32 statistic per row and, with an activation, its input. Under autocast
    ``x`` may stay float32 and is read without a cast.

    Args:
        x: ``(..., I)``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        norm_weight: LayerNorm scale ``(I,)``; 1 by default.
        norm_bias: LayerNorm shift ``(I,)``; 0 by default.
        eps: added to the variance.
        activation: ``"gelu"`` (exact, by erf) or None.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        ``(..., O)`` in the dtype of the weight, or autocast's.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape or device, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("norm_linear")
    checks.tensor("x", x, "... I")
    checks.tensor("weight", weight, "O I")
    checks.optional("bias", bias, "O")
    checks.optional("norm_weight", norm_weight, "I")
    checks.optional("norm_bias", norm_bias, "I")
    checks.number("eps", eps, least=0)
    checks.choice("activation", activation, (*get_args(Activation), None))
    checks.raise_if_any()
    compute = compute_dtype(weight)
    refusals = norm_refusals(x, (weight, bias, norm_weight, norm_bias), compute)
    chosen = choose("norm_linear", impl, refusals, worthwhile=x.is_cuda, cpu=x.is_cpu)
    if chosen != "triton":
        return reference.norm_linear(x, weight, bias, norm_weight, norm_bias, eps, activation, LINEAR[chosen])
    return ops.norm_linear(x, weight, bias, norm_weight, norm_bias, eps, activation == "gelu", compute)


def linear_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    residual_ids: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """``residual + x weight^T + bias``, the residual optionally gathered from a table.

    The kernels sum in float32 and round once, to the residual's dtype. On a GPU a table row whose id is out of range is
    not read, and its result is NaN.

    Args:
        x: ``(..., I)``; ``(B, Q, I)`` with ``residual_ids``.
        weight: ``(O, I)``.
        bias: ``(O,)`` or None.
        residual: ``(..., O)``, or a table ``(N, O)`` whose rows ``residual_ids`` selects.
        residual_ids: int64 or int32 ``(B, Q)``, each in ``[0, N)``; only with a table.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        ``(..., O)`` in the dtype of the residual.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape, device or range, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("linear_residual")
    checks.tensor("x", x, "... I" if residual_ids is None else "B Q I")
    checks.tensor("weight", weight, "O I")
    checks.optional("bias", bias, "O")
    if residual_ids is None:
        checks.tensor("residual", residual, "... O")
        checks.raise_if_any()
        outer, got = x.shape[:-1], residual.shape[:-1]
        if got != outer:  # the message alone would take 3 us
            checks.that(False, f"residual must have the leading dimensions of x, {tuple(outer)}, got {tuple(got)}")
    else:
        checks.tensor("residual", residual, "N O")
        checks.ids("residual_ids", residual_ids, "B Q", limit=checks.size("N"))
    checks.raise_if_any()
    compute = compute_dtype(weight)
    refusals = linear_residual_refusals(residual, bias, compute)
    chosen = choose("linear_residual", impl, refusals, worthwhile=x.is_cuda, cpu=x.is_cpu)
    if chosen != "triton":
        return reference.linear_residual(x, weight, bias, residual, residual_ids, LINEAR[chosen])
    return ops.linear_residual(cast(x, compute), weight, bias, residual, residual_ids)
