"""From predicted patches back to pictures, honest about where brightness and contrast come from."""

import warnings
from typing import Literal

import torch
from torch import Tensor

import crossmae_kernels as ck
from crossmae.config import Config
from crossmae.masking import Masking
from crossmae_kernels.patches.config import VARIANCE_EPS

Statistics = Literal["visible", "true"]


def reconstruct(
    images: Tensor, prediction: Tensor, masking: Masking, config: Config, statistics: Statistics = "visible"
) -> Tensor:
    """Images of which the predicted patches are predictions and the visible ones themselves.

    Patches that are neither take the mean of the image's visible pixels. A model trained on normalised pixels
    predicts a patch up to its brightness and contrast; ``statistics`` says where these are taken from:

    - ``"visible"``: interpolated between the visible patches (inverse squared distance, Shepard 1968). Nothing that
      was hidden from the model is used.
    - ``"true"``: the hidden patch's own. Looks better than the model is, since it leaks what was to be predicted;
      a ``UserWarning`` says so.

    Args:
        images: ``(B, C, H, W)``.
        prediction: ``(B, Q, P)``, a model's ``Output.prediction``.
        masking: ids that the prediction belongs to.
        config: the model's.
        statistics: see above; without effect for models trained on plain pixels.

    Returns:
        ``(B, C, H, W)`` in the dtype of the images.
    """
    if statistics not in ("visible", "true"):
        raise ValueError(f"statistics must be 'visible' or 'true', got {statistics!r}")
    visible = ck.gather_patches(images, masking.visible_ids, config.patch_size)
    predicted = prediction.to(images.dtype)
    if config.normalize_targets:
        if statistics == "true":
            warnings.warn(
                "statistics='true' gives every predicted patch the hidden patch's own mean and variance, "
                "which leaks what was to be predicted",
                UserWarning,
                stacklevel=2,
            )
            hidden = ck.gather_patches(images, masking.predicted_ids, config.patch_size)
            variance, mean = torch.var_mean(hidden, dim=-1, keepdim=True)
        else:
            variance, mean = _interpolated_statistics(visible, masking, config.grid)
        predicted = predicted * (variance + VARIANCE_EPS).sqrt() + mean
    patches = visible.mean(dim=(1, 2), keepdim=True).repeat(1, config.patches, config.patch_values)
    patches = patches.scatter(1, masking.visible_ids[:, :, None].expand_as(visible), visible)
    patches = patches.scatter(1, masking.predicted_ids[:, :, None].expand_as(predicted), predicted)
    return to_images(patches, config)


def to_images(patches: Tensor, config: Config) -> Tensor:
    """All patches in order, ``(B, L, P)`` with P running over (row, column, channel) -> ``(B, C, H, W)``."""
    rows, columns = config.grid
    tiles = patches.unflatten(2, (config.patch_size, config.patch_size, config.channels))
    tiles = tiles.unflatten(1, (rows, columns))  # (B, rows, columns, p, p, C)
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _interpolated_statistics(visible: Tensor, masking: Masking, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Variance and mean ``(B, Q, 1)`` for the predicted patches, interpolated between the visible patches' own."""
    columns = grid[1]

    def place(ids: Tensor) -> Tensor:
        return torch.stack([ids // columns, ids % columns], dim=-1).to(visible.dtype)

    weight = torch.cdist(place(masking.predicted_ids), place(masking.visible_ids)).square().reciprocal()
    weight = weight / weight.sum(dim=-1, keepdim=True)
    variance, mean = torch.var_mean(visible, dim=-1, keepdim=True)
    return weight @ variance, weight @ mean
