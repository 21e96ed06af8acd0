"""Patches by id in plain PyTorch: the specification."""

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.patches.config import VARIANCE_EPS, Reduction


def gather_patches(
    images: Tensor, ids: Tensor, sides: tuple[int, int], mean: Tensor | None, std: Tensor | None
) -> Tensor:
    """See ``crossmae_kernels.gather_patches``; arguments are assumed to be checked."""
    height, width = sides
    columns = images.shape[3] // width
    tiles = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # a view (B, C, rows, height, columns, width)
    image = torch.arange(images.shape[0], device=ids.device)[:, None]
    # Indexing the view reads only the requested patches: (B, V, C, height, width).
    picked = tiles[image, :, ids // columns, :, ids % columns].permute(0, 1, 3, 4, 2)
    if mean is not None and std is not None:
        picked = (picked.to(mean.dtype) / 255 - mean) / std
    return picked.flatten(2)


def standardize(patches: Tensor) -> Tensor:
    """Each patch ``(..., P)`` minus its mean, over the root of its unbiased variance + 1e-6."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + VARIANCE_EPS).sqrt()


def patch_loss(
    prediction: Tensor,
    images: Tensor,
    predicted_ids: Tensor,
    sides: tuple[int, int],
    normalize: bool,
    mean: Tensor | None,
    std: Tensor | None,
    reduction: Reduction,
) -> Tensor:
    """See ``crossmae_kernels.patch_loss``; arguments are assumed to be checked."""
    target = gather_patches(images, predicted_ids, sides, mean, std)
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    target = target.to(dtype)
    loss = F.mse_loss(prediction.to(dtype), standardize(target) if normalize else target, reduction=reduction)
    return loss.mean(dim=-1) if reduction == "none" else loss
