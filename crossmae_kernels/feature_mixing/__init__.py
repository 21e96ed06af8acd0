"""Normalised weighted sums of encoder feature maps, which inter-block attention attends to."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from crossmae_kernels.environment import Implementation
from crossmae_kernels.feature_mixing import ops, reference
from crossmae_kernels.feature_mixing.config import refusals
from crossmae_kernels.feature_mixing.cpu import SUMS
from crossmae_kernels.runtime.autocast import cast, compute_dtype, without_autocast
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.dispatch import WholeForms, choose
from crossmae_kernels.runtime.launch import dot_extent, input_precision


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

    The kernels never stack the maps. In 16 bits a token's mixes stay on chip while they are normalised, and again for
    the gradients, up to 12 decoder blocks of ViT-H; otherwise LayerNorm is a separate pass. They save the maps and
    float32 statistics ``(n, B, K)`` for the backward pass, and the mixes if LayerNorm is a separate pass. An affine
    costs another pass; it is better folded into the next linear layer (``crossmae_kernels.norm_folding``). Under
    autocast the kernels read the maps in their own dtype, which must be the same for all. float32 products follow
    ``torch.set_float32_matmul_precision``.

    Args:
        maps: k feature maps, each ``(B, K, E)``.
        weight: mixing weights ``(n, k)``, one row per decoder block.
        norm_weight: LayerNorm scale ``(n, E)``; 1 by default.
        norm_bias: LayerNorm shift ``(n, E)``; 0 by default.
        eps: added to the variance.
        normalize: False returns the plain weighted sums.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        ``(n, B, K, E)``, contiguous per decoder block.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape or device, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("mix_feature_maps")
    maps = checks.tensors("maps", maps, "B K E")
    checks.tensor("weight", weight, f"n {len(maps) or 'k'}")
    checks.optional("norm_weight", norm_weight, "n E")
    checks.optional("norm_bias", norm_bias, "n E")
    checks.number("eps", eps, least=0)
    checks.flag("normalize", normalize)
    checks.that(
        normalize is not False or (norm_weight is None and norm_bias is None),
        "norm_weight and norm_bias must be None with normalize=False",
    )
    checks.raise_if_any()
    reasons, on_gpu, on_cpu = refusals(maps, weight), weight.is_cuda, weight.is_cpu
    chosen = choose("mix_feature_maps", impl, reasons, worthwhile=on_gpu, cpu=on_cpu)
    if chosen != "triton":
        return reference.mix_feature_maps(maps, weight, norm_weight, norm_bias, eps, normalize, SUMS[chosen])
    return mixed(impl, maps, weight.to(compute_dtype(weight)), norm_weight, norm_bias, eps, normalize)


def mixed(
    impl: Implementation,
    maps: Sequence[Tensor],
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    normalize: bool,
) -> Tensor:
    """``mix_feature_maps`` where the kernels can serve the call; ``weight`` is in the compute dtype."""
    return _FORMS.serve(impl, *maps, weight, norm_weight, norm_bias, eps, normalize)


def _by_kernels(*arguments: Any) -> Tensor:
    *maps, weight, norm_weight, norm_bias, eps, normalize = arguments
    mixes = ops.mix_feature_maps(maps, weight, eps, normalize)
    if norm_weight is not None:
        mixes = mixes * norm_weight[:, None, None].to(mixes.dtype)
    if norm_bias is not None:
        mixes = mixes + norm_bias[:, None, None].to(mixes.dtype)
    return mixes


@without_autocast
def _by_pytorch(*arguments: Any) -> Tensor:
    """The reference, in the compute dtype throughout."""
    *maps, weight, norm_weight, norm_bias, eps, normalize = arguments
    maps = [cast(feature_map, weight.dtype) for feature_map in maps]
    affine = cast(norm_weight, weight.dtype), cast(norm_bias, weight.dtype)
    return reference.mix_feature_maps(maps, weight, *affine, eps, normalize)


def _key(*arguments: Any) -> tuple[object, ...]:
    first, (weight, norm_weight, norm_bias, _, normalize) = arguments[0], arguments[-5:]
    return (
        weight.shape, dot_extent(first.shape[1]), first.shape[2], first.dtype, weight.dtype,
        input_precision(weight.dtype), normalize and "normalize", norm_weight is not None and "scale",
        norm_bias is not None and "shift",
    )  # fmt: skip


_FORMS = WholeForms("mix_feature_maps", {"kernels": _by_kernels, "pytorch": _by_pytorch}, _key, refusals={})
