"""Keys and values of all decoder blocks from feature maps: mix, normalise, project."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae_kernels.feature_mixing.ops import mix_feature_maps
from crossmae_kernels.feature_projection import ops, reference
from crossmae_kernels.feature_projection.config import refusals
from crossmae_kernels.norm_folding.ops import fold_norms
from crossmae_kernels.runtime.autocast import compute_dtype
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.dispatch import Implementation, choose


def project_feature_maps(
    maps: Sequence[Tensor],
    mixing_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float = 1e-6,
    impl: Implementation = "auto",
) -> tuple[Tensor, ...]:
    """``LayerNorm_l(sum_j mixing_weight[l, j] * maps[j]) weights[l]^T + biases[l]`` for every decoder block l.

    With kernels the norms' affine is folded into the projections, which are then one batched product over the mixes:
    they wait for nothing but the maps. The fold costs as much as the weights are large and saves as much as there are
    tokens, so the reference, which serves small batches on a CPU, does neither.

    Args:
        maps: k feature maps, each ``(B, K, E)``.
        mixing_weight: ``(n, k)``, one row per decoder block.
        norm_weight: LayerNorm scales ``(n, E)``.
        norm_bias: LayerNorm shifts ``(n, E)``.
        weights: n times ``(O, E)``.
        biases: n times ``(O,)``.
        eps: added to the variance.
        impl: who serves the call.

    Returns:
        n times ``(B, K, O)``.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape or device, before any work.
        RuntimeError: with ``impl="triton"`` when the kernels cannot serve the call, with every reason.
    """
    checks = ArgumentChecks("project_feature_maps")
    maps = checks.tensors("maps", maps, "B K E")
    checks.tensor("mixing_weight", mixing_weight, f"n {len(maps) or 'k'}")
    checks.tensor("norm_weight", norm_weight, "n E")
    checks.tensor("norm_bias", norm_bias, "n E")
    weights = checks.tensors("weights", weights, "O E")
    biases = checks.tensors("biases", biases, "O")
    checks.number("eps", eps, least=0)
    blocks = checks.size("n")
    for name, several in (("weights", weights), ("biases", biases)):
        checks.that(
            not several or len(several) == blocks,
            f"{name} must hold one tensor for each of {blocks} rows, got {len(several)}",
        )
    checks.raise_if_any()
    compute = compute_dtype(weights[0])
    reasons = refusals(maps, mixing_weight, weights, (*biases, norm_weight, norm_bias), compute)
    chosen = choose("project_feature_maps", impl, reasons, worthwhile=mixing_weight.is_cuda)
    if chosen == "reference":
        return reference.project_feature_maps(maps, mixing_weight, norm_weight, norm_bias, weights, biases, eps)
    weight, bias = fold_norms(weights, torch.stack(biases), norm_weight, norm_bias, compute)
    assert bias is not None
    mixes = mix_feature_maps(maps, mixing_weight.to(compute_dtype(mixing_weight)), eps, normalize=True)
    return ops.project(mixes, weight, bias)
