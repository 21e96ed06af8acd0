"""Weighted sums of encoder feature maps, normalised: what inter-block attention attends to."""

from collections.abc import Sequence

from torch import Tensor

from crossmae_kernels.common.checks import ArgumentChecks
from crossmae_kernels.common.implementation import NO_KERNEL, Implementation, choose
from crossmae_kernels.feature_mixing import reference


def mix_feature_maps(
    maps: Sequence[Tensor],
    weight: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    normalize: bool = True,
    impl: Implementation = "auto",
) -> Tensor:
    """``LayerNorm_l(sum_j weight[l, j] * maps[j])`` for every decoder block l (CrossMAE, section 3.3).

    Args:
        maps: k feature maps, each ``(B, K, E)``.
        weight: mixing weights ``(n, k)``, one row per decoder block.
        norm_weight: LayerNorm scale ``(n, E)``; 1 unless given.
        norm_bias: LayerNorm shift ``(n, E)``; 0 unless given.
        eps: added to the variance.
        normalize: False yields the weighted sums as they are.
        impl: who serves the call.

    Returns:
        ``(n, B, K, E)``, contiguous per decoder block.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape or device, before any work.
    """
    checks = ArgumentChecks("mix_feature_maps")
    checks.that(len(maps) > 0, "maps must hold at least one feature map, got none")
    for index, feature_map in enumerate(maps):
        checks.tensor(f"maps[{index}]", feature_map, "B K E")
    checks.tensor("weight", weight, f"n {len(maps)}")
    checks.optional("norm_weight", norm_weight, "n E")
    checks.optional("norm_bias", norm_bias, "n E")
    checks.that(
        normalize or (norm_weight is None and norm_bias is None),
        "norm_weight and norm_bias must be None where normalize=False",
    )
    checks.raise_if_any()
    choose("mix_feature_maps", impl, NO_KERNEL)
    return reference.mix_feature_maps(maps, weight, norm_weight, norm_bias, eps, normalize)
