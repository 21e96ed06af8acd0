"""Image patches by id: gathering the visible ones, and the loss on the predicted ones.

Patches are numbered row by row from the top left. A patch as a vector runs over (row, column, channel).
"""

from typing import Any, get_args

import torch
from torch import Tensor

from crossmae_kernels.environment import Implementation
from crossmae_kernels.patches import ops, reference
from crossmae_kernels.patches.config import Reduction, loss_refusals, refusals
from crossmae_kernels.runtime.autocast import autocasts
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.dispatch import WholeForms, choose
from crossmae_kernels.runtime.launch import dot_extent


def gather_patches(
    images: Tensor,
    ids: Tensor,
    patch_size: int | tuple[int, int],
    mean: Tensor | None = None,
    std: Tensor | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """Patches of images, by id.

    The kernels save only the ids for the backward pass. Under autocast they write the rows in autocast's dtype, to
    which the next linear layer would cast them anyway; the reference leaves that to the layer. On a GPU a patch whose
    id is out of range is not read, and its row is NaN.

    Args:
        images: ``(B, C, H, W)``, floating point or uint8, with sizes that are multiples of the patch size.
        ids: int64 or int32 ``(B, V)``, each less than the number of patches; may repeat.
        patch_size: side of a patch in pixels, or height and width.
        mean: float32 ``(C,)``, only with uint8 images, which are normalised to ``(pixel / 255 - mean) / std``.
        std: float32 ``(C,)``, positive; likewise.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        ``(B, V, P)`` with P = height * width * C of a patch, in the dtype of the images, float32 for uint8.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape, device or range, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("gather_patches")
    sides = _check_images(checks, images, patch_size, mean, std)
    checks.ids("ids", ids, "B V", limit=_patches_of(images, sides))
    checks.raise_if_any()
    dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    if autocasts(images.device.type):
        dtype = torch.get_autocast_dtype(images.device.type)
    reasons = refusals(images, sides, mean, std, dtype)
    if choose("gather_patches", impl, reasons, worthwhile=images.is_cuda) == "reference":
        return reference.gather_patches(images, ids, sides, mean, std)
    return _GATHER.serve(impl, images, ids, sides, mean, std, dtype)


def patch_loss(
    prediction: Tensor,
    images: Tensor,
    predicted_ids: Tensor,
    patch_size: int | tuple[int, int],
    normalize: bool,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    reduction: Reduction = "mean",
    impl: Implementation = "auto",
) -> Tensor:
    """Mean squared error between predicted patches and the images' own (MAE, section 3).

    The kernels read pixels straight from the image and compute in float32. If the prediction needs a gradient, they
    write its difference from the target in the same pass, in the prediction's dtype, and save only that: so in float16
    a difference beyond 65,504 has an infinite gradient. They have no gradient for the images. On a GPU a patch whose id
    is out of range is not read, and its loss is NaN.

    Args:
        prediction: ``(B, Q, P)`` with P = height * width * C of a patch; its dtype may differ from the images'.
        images: ``(B, C, H, W)``, floating point or uint8, with sizes that are multiples of the patch size.
        predicted_ids: int64 or int32 ``(B, Q)``, each less than the number of patches.
        patch_size: see ``gather_patches``.
        normalize: standardise each target patch by its own mean and unbiased variance:
            ``(t - mean) / sqrt(var + 1e-6)``.
        mean: see ``gather_patches``; only with uint8 images.
        std: see ``gather_patches``; only with uint8 images.
        reduction: ``"mean"`` over everything, or ``"none"``: only over the values of each patch.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        A scalar, or ``(B, Q)`` with ``reduction="none"``; float32 or (for float64 arguments) float64.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape, device or range, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("patch_loss")
    checks.flag("normalize", normalize)
    checks.choice("reduction", reduction, get_args(Reduction))
    sides = _check_images(checks, images, patch_size, mean, std)
    checks.ids("predicted_ids", predicted_ids, "B Q", limit=_patches_of(images, sides))
    values = sides[0] * sides[1] * images.shape[1]
    checks.tensor("prediction", prediction, f"B Q {values}", any_dtype=True)
    checks.that(values > 0, "images must have at least one channel, got none")
    checks.that(values > 1 or normalize is not True, "normalize=True needs patches of more than one value")
    checks.raise_if_any()
    if reduction == "mean":
        checks.that(prediction.shape[0] > 0, "images must hold at least one image, got none")
        checks.that(prediction.shape[1] > 0, "predicted_ids must name at least one patch, got none")
    checks.raise_if_any()
    reasons = loss_refusals(images, sides, mean, std, prediction.dtype)
    if choose("patch_loss", impl, reasons, worthwhile=images.is_cuda) == "reference":
        return reference.patch_loss(prediction, images, predicted_ids, sides, normalize, mean, std, reduction)
    losses = _LOSS.serve(impl, prediction, images, predicted_ids, sides, normalize, mean, std)
    return losses.mean() if reduction == "mean" else losses


def _check_images(
    checks: ArgumentChecks,
    images: Tensor,
    patch_size: int | tuple[int, int],
    mean: Tensor | None,
    std: Tensor | None,
) -> tuple[int, int]:
    """Check the images and return a patch's height and width; raises if these cannot be determined."""
    several = isinstance(patch_size, tuple) and len(patch_size) == 2
    sides: Any = patch_size if several else (patch_size, patch_size)
    names = ("patch_size[0]", "patch_size[1]") if several else ("patch_size",)
    fits = all(checks.integer(*named) for named in zip(names, sides, strict=False))
    checks.tensor("images", images, "B C H W", or_dtype=torch.uint8)
    height, width = checks.size("H"), checks.size("W")
    if fits:
        fits = height % sides[0] == 0 and width % sides[1] == 0
        checks.that(fits, f"patch_size must divide the image size {height} x {width}, got {patch_size}")
    if not fits:
        checks.raise_if_any()
    for name, statistic in (("mean", mean), ("std", std)):
        if images.dtype != torch.uint8:
            checks.that(statistic is None, f"{name} is for uint8 images, but these are {images.dtype}")
        else:
            checks.tensor(name, statistic, "C", dtype=torch.float32)
    if images.dtype == torch.uint8:
        checks.positive("std", std)
    return sides[0], sides[1]


def _patches_of(images: Tensor, sides: tuple[int, int]) -> int:
    """Number of patches in an image."""
    return (images.shape[2] // sides[0]) * (images.shape[3] // sides[1])


def _gathered_by_pytorch(
    images: Tensor, ids: Tensor, sides: tuple[int, int], mean: Tensor | None, std: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The reference in ``dtype``, but with NaN for ids out of range, like the kernels."""
    unknown = _unknown(images, ids, sides)
    rows = reference.gather_patches(images, ids.masked_fill(unknown, 0), sides, mean, std)
    return rows.masked_fill(unknown[..., None], float("nan")).to(dtype)


def _lost_by_pytorch(
    prediction: Tensor,
    images: Tensor,
    predicted_ids: Tensor,
    sides: tuple[int, int],
    normalize: bool,
    mean: Tensor | None,
    std: Tensor | None,
) -> Tensor:
    """The reference's losses of patches, but NaN, gradients too, for ids out of range, like the kernels."""
    unknown = _unknown(images, predicted_ids, sides)
    ids = predicted_ids.masked_fill(unknown, 0)
    losses = reference.patch_loss(prediction, images, ids, sides, normalize, mean, std, "none")
    return losses * torch.ones_like(losses).masked_fill_(unknown, float("nan"))


def _unknown(images: Tensor, ids: Tensor, sides: tuple[int, int]) -> Tensor:
    return (ids < 0) | (ids >= _patches_of(images, sides))


_GATHER = WholeForms(
    "gather_patches",
    {"kernels": ops.gather_patches, "pytorch": _gathered_by_pytorch},
    key=lambda images, ids, sides, mean, std, dtype: (
        images.shape[1:], images.dtype, dot_extent(ids.shape[1]), sides, dtype,
    ),
    refusals={},
)  # fmt: skip
_LOSS = WholeForms(
    "patch_loss",
    {"kernels": ops.patch_loss, "pytorch": _lost_by_pytorch},
    key=lambda prediction, images, ids, sides, normalize, mean, std: (
        images.shape[1:], images.dtype, dot_extent(ids.shape[1]), sides, prediction.dtype, normalize and "normalize",
    ),
    refusals={},
)  # fmt: skip
