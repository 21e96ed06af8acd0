"""From settings to images."""

import torch

from crossmae.training.data.augmentation import Augmentation
from crossmae.training.data.config import DataConfig
from crossmae.training.data.dataset import ImageDataset, Images
from crossmae.training.data.sources import find_sources


def open_images(
    config: DataConfig,
    channels: int,
    image_size: tuple[int, int],
    patches: int,
    seed: int = 0,
    strict: bool = False,
) -> ImageDataset:
    """Find the images of a run; nothing is decoded yet.

    Args:
        config: where they are and what is done to them.
        channels, image_size, patches: the model's number of channels, (H, W) and number of patches.
        seed: of crops, flips and masks.
        strict: refuse images that cannot be read, instead of taking the next one.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, ValueError: if there are none.
    """
    if config.mean is not None and len(config.mean) != channels:
        raise ValueError(f"mean and std must have one value for each of {channels} channels, got {config.mean}")
    if config.source is None:
        raise ValueError(
            "no images are given: data.source must be a folder of images, shards or the name of a bundled set"
        )
    found = find_sources(config.source, config.evaluation)
    options = (channels, image_size, getattr(torch, config.dtype), strict)
    return ImageDataset(
        images=Images(found.training, *options),
        augmentation=Augmentation(image_size, config.crop_scale, config.flip),
        patches=patches,
        seed=seed,
        evaluation=None if found.evaluation is None else Images(found.evaluation, *options),
    )
