"""The MLP of a pre-norm transformer block, including the residual."""

from typing import get_args

from torch import Tensor

from crossmae_kernels.environment import Implementation
from crossmae_kernels.mlp import ops, reference
from crossmae_kernels.mlp.config import Hidden
from crossmae_kernels.runtime.autocast import compute_dtype
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.cpu_linear import LINEAR
from crossmae_kernels.runtime.device import norm_refusals
from crossmae_kernels.runtime.dispatch import choose


def mlp(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float = 1e-6,
    hidden: Hidden = "recompute",
    impl: Implementation = "auto",
) -> Tensor:
    """``x + fc2(gelu(fc1(LayerNorm(x))))`` with exact (erf) GELU.

    The kernels fold the norm's scale and shift into fc1. For the backward pass they save normalised rows in the compute
    dtype and a float32 statistic per row instead of ``x``; with ``hidden="save"`` also GELU's input ``(..., H)``, which
    is otherwise recomputed. Under autocast ``x`` may stay float32: it is read without a cast, and the residual is added
    in float32.

    Args:
        x: ``(..., D)``.
        norm_weight: LayerNorm scale ``(D,)``; 1 if None.
        norm_bias: LayerNorm shift ``(D,)``; 0 if None.
        fc1_weight: ``(H, D)``.
        fc1_bias: ``(H,)`` or None.
        fc2_weight: ``(D, H)``.
        fc2_bias: ``(D,)`` or None.
        eps: added to the variance.
        hidden: whether the kernels save the hidden layer for the backward pass; the reference always does.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        ``(..., D)`` in the dtype of ``x``.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape or device, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("mlp")
    checks.tensor("x", x, "... D")
    checks.optional("norm_weight", norm_weight, "D")
    checks.optional("norm_bias", norm_bias, "D")
    checks.tensor("fc1_weight", fc1_weight, "H D")
    checks.optional("fc1_bias", fc1_bias, "H")
    checks.tensor("fc2_weight", fc2_weight, "D H")
    checks.optional("fc2_bias", fc2_bias, "D")
    checks.number("eps", eps, least=0)
    checks.choice("hidden", hidden, get_args(Hidden))
    checks.raise_if_any()
    compute = compute_dtype(fc1_weight)
    reasons = norm_refusals(x, (norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_bias), compute)
    chosen = choose("mlp", impl, reasons, worthwhile=x.is_cuda, cpu=x.is_cpu)
    if chosen != "triton":
        layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias
        return reference.mlp(x, norm_weight, norm_bias, *layers, eps, LINEAR[chosen])
    save = hidden == "save"
    return ops.mlp(
        x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, compute, save_hidden=save
    )
