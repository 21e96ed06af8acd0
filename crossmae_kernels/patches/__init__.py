"""Image patches by id: gathering the visible ones, and the loss on the predicted ones.

Patches are numbered row by row from the top left. A patch as a vector runs over (row, column, channel).
"""

from torch import Tensor

from crossmae_kernels.common.checks import ArgumentChecks
from crossmae_kernels.common.implementation import NO_KERNEL, Implementation, choose
from crossmae_kernels.patches import reference


def gather_patches(images: Tensor, ids: Tensor, patch_size: int, impl: Implementation = "auto") -> Tensor:
    """Patches of images, by id.

    Args:
        images: ``(B, C, H, W)``; ``patch_size`` divides H and W.
        ids: int64 or int32 ``(B, V)``, each in ``[0, (H / patch_size) * (W / patch_size))``.
        patch_size: side of a patch in pixels.
        impl: who serves the call.

    Returns:
        ``(B, V, patch_size * patch_size * C)``.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape, device or range, before any work.
    """
    checks = ArgumentChecks("gather_patches")
    checks.tensor("images", images, "B C H W")
    checks.ids("ids", ids, "B V", limit=_patches_of(checks, patch_size))
    checks.raise_if_any()
    choose("gather_patches", impl, NO_KERNEL)
    return reference.gather_patches(images, ids, patch_size)


def patch_loss(
    prediction: Tensor,
    images: Tensor,
    predicted_ids: Tensor,
    patch_size: int,
    normalize: bool,
    impl: Implementation = "auto",
) -> Tensor:
    """Mean squared error between predicted patches and the images' own (MAE, section 3).

    Args:
        prediction: ``(B, Q, patch_size * patch_size * C)``; its dtype may differ from the images'.
        images: ``(B, C, H, W)``; ``patch_size`` divides H and W.
        predicted_ids: int64 or int32 ``(B, Q)``, each in ``[0, (H / patch_size) * (W / patch_size))``.
        patch_size: side of a patch in pixels.
        normalize: standardise each target patch by its own mean and unbiased variance:
            ``(t - mean) / sqrt(var + 1e-6)``.
        impl: who serves the call.

    Returns:
        A scalar, float32 or (for float64 arguments) float64.

    Raises:
        TypeError, ValueError: on arguments of wrong type, dtype, shape, device or range, before any work.
    """
    checks = ArgumentChecks("patch_loss")
    checks.tensor("images", images, "B C H W")
    checks.ids("predicted_ids", predicted_ids, "B Q", limit=_patches_of(checks, patch_size))
    pixels = patch_size * patch_size * checks.size("C")
    checks.tensor("prediction", prediction, f"B Q {pixels}", any_dtype=True)
    checks.that(pixels > 1 or not normalize, "normalize=True needs patches of more than one value")
    checks.raise_if_any()
    checks.that(prediction.numel() > 0, "predicted_ids must name at least one patch, got none")
    checks.raise_if_any()
    choose("patch_loss", impl, NO_KERNEL)
    return reference.patch_loss(prediction, images, predicted_ids, patch_size, normalize)


def _patches_of(checks: ArgumentChecks, patch_size: int) -> int:
    """Number of patches of the images that ``checks`` has seen as ``(B, C, H, W)``."""
    height, width = checks.size("H"), checks.size("W")
    checks.that(
        patch_size > 0 and height % max(patch_size, 1) == 0 and width % max(patch_size, 1) == 0,
        f"patch_size must divide the image size {height} x {width}, got {patch_size}",
    )
    checks.raise_if_any()
    return (height // patch_size) * (width // patch_size)
