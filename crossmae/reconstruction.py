"""Turn predicted patches back into pictures, with brightness and contrast from a stated source."""

import warnings
from typing import Literal

import torch
from torch import Tensor

import crossmae_kernels as ck
from crossmae.masking import Masking
from crossmae.model import MaskedAutoencoder, Output
from crossmae.model.autoencoder import pixels_in_rows
from crossmae.model.config import Config
from crossmae.model.values import pair
from crossmae_kernels.patches.config import VARIANCE_EPS
from crossmae_kernels.runtime.device import constant_when_compiled

Statistics = Literal["visible", "true"]


@torch.no_grad()
def reconstruction_columns(
    model: MaskedAutoencoder, images: Tensor, output: Output, statistics: Statistics = "visible", blocks: bool = False
) -> dict[str, Tensor]:
    """Images, their visible part and a model's reconstruction, as columns for ``figures.draw_reconstructions``.

    Args:
        model: in evaluation mode.
        images: ``(B, C, H, W)``, normalised.
        output: ``model(images, ...)``, with any mask.
        statistics: see ``reconstruct``.
        blocks: include the prediction after each decoder block but the last (see ``block_predictions``).

    Returns:
        Pictures ``(B, C, H, W)`` by name: "original", "masked" (NaN where hidden), with ``blocks`` "after
        block 1" and so on, "reconstruction". Scaled to [0, 1] if the model has pixel statistics.
    """
    config, masking = model.config, output.masking
    predictions = {"reconstruction": output.prediction}
    if blocks:
        *earlier, _ = block_predictions(model, model.encoder(images, masking.visible_ids), masking)
        predictions = {f"after block {place}": patches for place, patches in enumerate(earlier, start=1)} | predictions
    columns = {"original": images, "masked": visible_part(images, masking, config)}
    for name, prediction in predictions.items():
        columns[name] = reconstruct(images, prediction, masking, config, statistics)
    return {name: denormalized(pictures, config) for name, pictures in columns.items()}


@torch.no_grad()
def block_predictions(model: MaskedAutoencoder, maps: list[Tensor], masking: Masking) -> list[Tensor]:
    """The prediction after each decoder block, by applying the final norm and head early to the residual.

    For language models this is known as the logit lens (nostalgebraist, 2020). The head was trained only on the last
    block's output, so early predictions show what later blocks start from, not the best that could be decoded.

    Args:
        model: with CrossMAE's or MAE's decoder.
        maps: ``model.encoder(images, masking.visible_ids)``.
        masking: ids of visible patches and of those to predict.

    Returns:
        As many ``(B, Q, P)`` as there are decoder blocks; the last is the model's prediction.
    """
    return [model.decoder.pixels(x, masking) for x in model.decoder.residuals(maps, masking)]


def reconstruct(
    images: Tensor, prediction: Tensor, masking: Masking, config: Config, statistics: Statistics = "visible"
) -> Tensor:
    """Images composed of predicted patches and the original visible ones.

    Patches that are neither get the mean of the image's visible pixels. A model trained on normalised pixels predicts a
    patch only up to brightness and contrast; ``statistics`` says where these come from:

    - ``"visible"``: interpolated between the visible patches (inverse squared distance, Shepard 1968). Nothing
      hidden from the model is used.
    - ``"true"``: the hidden patch's own. Looks better than the model is, since it leaks the target; a ``UserWarning``
      says so.

    Args:
        images: ``(B, C, H, W)``.
        prediction: ``(B, Q, P)``, a model's ``Output.prediction``, in the model's own pixel order.
        masking: the mask of the prediction.
        config: the model's.
        statistics: see above; has no effect for models trained on plain pixels.

    Returns:
        ``(B, C, H, W)`` in the dtype of the images.
    """
    if statistics not in ("visible", "true"):
        raise ValueError(f"statistics must be 'visible' or 'true', got {statistics!r}")
    visible = ck.gather_patches(images, masking.visible_ids, config.patch_size)
    predicted = pixels_in_rows(prediction, config).to(images.dtype)
    if config.normalize_targets:
        if statistics == "true":
            _warn_of_a_leak()
            hidden = ck.gather_patches(images, masking.predicted_ids, config.patch_size)
            variance, mean = torch.var_mean(hidden, dim=-1, keepdim=True)
        else:
            variance, mean = _interpolated_statistics(visible, masking, config.grid)
        predicted = predicted * (variance + VARIANCE_EPS).sqrt() + mean
    patches = visible.mean(dim=(1, 2), keepdim=True).repeat(1, config.patches, config.patch_values)
    patches = patches.scatter(1, masking.visible_ids[:, :, None].expand_as(visible), visible)
    patches = patches.scatter(1, masking.predicted_ids[:, :, None].expand_as(predicted), predicted)
    return to_images(patches, config)


@constant_when_compiled  # called once, at compile time
def _warn_of_a_leak() -> None:
    warnings.warn(
        "statistics='true' gives every predicted patch the hidden patch's own mean and variance, "
        "which leaks the target",
        UserWarning,
        stacklevel=3,
    )


def visible_part(images: Tensor, masking: Masking, config: Config) -> Tensor:
    """Images ``(B, C, H, W)``, floating point, with NaN in all patches except the visible ones."""
    visible = ck.gather_patches(images, masking.visible_ids, config.patch_size)
    patches = visible.new_full((images.shape[0], config.patches, config.patch_values), float("nan"))
    return to_images(patches.scatter(1, masking.visible_ids[:, :, None].expand_as(visible), visible), config)


def denormalized(images: Tensor, config: Config) -> Tensor:
    """Normalised images ``(..., C, H, W)`` scaled back to [0, 1]; unchanged without pixel statistics."""
    if config.pixel_mean is None or config.pixel_std is None:
        return images
    mean, std = (images.new_tensor(values)[:, None, None] for values in (config.pixel_mean, config.pixel_std))
    return images * std + mean


def to_images(patches: Tensor, config: Config) -> Tensor:
    """All patches in order, ``(B, L, P)`` with P running over (row, column, channel) -> ``(B, C, H, W)``."""
    rows, columns = config.grid
    tiles = patches.unflatten(2, (*pair(config.patch_size), config.channels))
    tiles = tiles.unflatten(1, (rows, columns))  # (B, rows, columns, height, width, C)
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
