"""Image patches by id: gathering the visible ones, and the loss on the predicted ones.

Patches are numbered row by row from the top left. A patch as a vector runs over (row, column, channel).
"""

from typing import get_args

import torch
from torch import Tensor

from crossmae_kernels.patches import ops, reference
from crossmae_kernels.patches.config import Reduction, loss_refusals, refusals
from crossmae_kernels.runtime.autocast import autocasts
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.dispatch import Implementation, choose


def gather_patches(
    images: Tensor,
    ids: Tensor,
    patch_size: int,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """Patches of images, by id.

    The kernels keep the ids for the backward pass and nothing else. Under autocast they write the rows in autocast's
    dtype, which the linear layer behind them would cast them to anyway; the reference leaves that to the layer. On a
    GPU a patch whose id is out of range is not read, and comes out as NaN.

    Args:
        images: ``(B, C, H, W)``, floating point or uint8; ``patch_size`` divides H and W.
        ids: int64 or int32 ``(B, V)``, each in ``[0, (H / patch_size) * (W / patch_size))``. May repeat.
        patch_size: side of a patch in pixels.
        mean: float32 ``(C,)`` to subtract from uint8 pixels, as shares of 255; only with uint8 images.
        std: float32 ``(C,)``, positive, to divide by then: ``(pixel / 255 - mean) / std``; only with uint8 images.
        impl: who serves the call.

    Returns:
        ``(B, V, patch_size * patch_size * C)`` in the dtype of the images, float32 for uint8.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape, device or range, before any work.
        RuntimeError: with ``impl="triton"`` when the kernels cannot serve the call, with every reason.
    """
    checks = ArgumentChecks("gather_patches")
    _check_images(checks, images, patch_size, mean, std)
    checks.ids("ids", ids, "B V", limit=_patches_of(images, patch_size))
    checks.raise_if_any()
    dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    if autocasts(images.device.type):
        dtype = torch.get_autocast_dtype(images.device.type)
    reasons = refusals(images, patch_size, mean, std, dtype)
    if choose("gather_patches", impl, reasons, worthwhile=images.is_cuda) == "reference":
        return reference.gather_patches(images, ids, patch_size, mean, std)
    return ops.gather_patches(images, ids, patch_size, mean, std, dtype)


def patch_loss(
    prediction: Tensor,
    images: Tensor,
    predicted_ids: Tensor,
    patch_size: int,
    normalize: bool,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    reduction: Reduction = "mean",
    impl: Implementation = "auto",
) -> Tensor:
    """Mean squared error between predicted patches and the images' own (MAE, section 3).

    The kernels read each pixel from the image and compute in float32. If the prediction needs a gradient, they write
    its difference from the target in the same pass, in the prediction's dtype, and keep that and nothing else: so in
    float16 a difference beyond 65,504 has an infinite gradient. They have no gradient to the images. On a GPU a patch
    whose id is out of range is not read, and its loss is NaN.

    Args:
        prediction: ``(B, Q, patch_size * patch_size * C)``; its dtype may differ from the images'.
        images: ``(B, C, H, W)``, floating point or uint8; ``patch_size`` divides H and W.
        predicted_ids: int64 or int32 ``(B, Q)``, each in ``[0, (H / patch_size) * (W / patch_size))``.
        patch_size: side of a patch in pixels.
        normalize: standardise each target patch by its own mean and unbiased variance:
            ``(t - mean) / sqrt(var + 1e-6)``.
        mean: as for ``gather_patches``; only with uint8 images.
        std: as for ``gather_patches``; only with uint8 images.
        reduction: ``"mean"`` over everything, or ``"none"``: over the values of each patch alone.
        impl: who serves the call.

    Returns:
        A scalar, or ``(B, Q)`` with ``reduction="none"``; float32 or (for float64 arguments) float64.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape, device or range, before any work.
        RuntimeError: with ``impl="triton"`` when the kernels cannot serve the call, with every reason.
    """
    checks = ArgumentChecks("patch_loss")
    checks.flag("normalize", normalize)
    checks.choice("reduction", reduction, get_args(Reduction))
    _check_images(checks, images, patch_size, mean, std)
    checks.ids("predicted_ids", predicted_ids, "B Q", limit=_patches_of(images, patch_size))
    values = patch_size * patch_size * images.shape[1]
    checks.tensor("prediction", prediction, f"B Q {values}", any_dtype=True)
    checks.that(values > 0, "images must have at least one channel, got none")
    checks.that(values > 1 or normalize is not True, "normalize=True needs patches of more than one value")
    checks.raise_if_any()
    if reduction == "mean":
        checks.that(prediction.shape[0] > 0, "images must hold at least one image, got none")
        checks.that(prediction.shape[1] > 0, "predicted_ids must name at least one patch, got none")
    checks.raise_if_any()
    reasons = loss_refusals(images, patch_size, mean, std, prediction.dtype)
    if choose("patch_loss", impl, reasons, worthwhile=images.is_cuda) == "reference":
        return reference.patch_loss(prediction, images, predicted_ids, patch_size, normalize, mean, std, reduction)
    losses = ops.patch_loss(prediction, images, predicted_ids, patch_size, normalize, mean, std)
    return losses.mean() if reduction == "mean" else losses


def _check_images(
    checks: ArgumentChecks, images: Tensor, patch_size: int, mean: Tensor | None, std: Tensor | None
) -> None:
    """Note what is wrong with images; raise if there is no telling how many patches they have."""
    fits = checks.integer("patch_size", patch_size)
    checks.tensor("images", images, "B C H W", or_dtype=torch.uint8)
    height, width = checks.size("H"), checks.size("W")
    if fits:
        fits = height % patch_size == 0 and width % patch_size == 0
        checks.that(fits, f"patch_size must divide the image size {height} x {width}, got {patch_size}")
    if not fits:
        checks.raise_if_any()
    for name, statistic in (("mean", mean), ("std", std)):
        if images.dtype != torch.uint8:
            checks.that(statistic is None, f"{name} is for uint8 images, these are {images.dtype}")
        else:
            checks.tensor(name, statistic, "C", dtype=torch.float32)
    if images.dtype == torch.uint8:
        checks.positive("std", std)


def _patches_of(images: Tensor, patch_size: int) -> int:
    """Number of patches of an image."""
    return (images.shape[2] // patch_size) * (images.shape[3] // patch_size)
