"""From settings to images."""

from dataclasses import replace

import torch

from crossmae.training.data.augmentation import Augmentation
from crossmae.training.data.config import DataConfig
from crossmae.training.data.dataset import ImageDataset, Images
from crossmae.training.data.sources import find_sources
from crossmae.training.data.statistics import Survey, survey

# Times that deep images may spread wider or narrower than is said, and how many of their own deviations their mean may
# lie from the one that is said: ImageNet's statistics, which recipes give, serve photographs of 16 bits (0.5 off), and
# no 12 to 14 bits that lie in 16. Evenly spread, 14 bits deviate 3.2 times less, but have their mean 5 off.
FAR_OFF, MEAN_OFF = 8, 4


def open_images(
    config: DataConfig,
    channels: int,
    image_size: tuple[int, int],
    patches: int,
    seed: int = 0,
    strict: bool = False,
) -> ImageDataset:
    """Find the images of a run, and look into some of them for the settings that are not given.

    Args:
        config: where they are and what is done to them.
        channels, image_size, patches: the model's number of channels, (H, W) and number of patches.
        seed: of crops, flips and masks.
        strict: refuse images that cannot be read, instead of taking the next one.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, ValueError: if there are none, they cannot be read, or
            what they hold leaves open what is meant.
    """
    if config.mean is not None and len(config.mean) != channels:
        raise ValueError(f"mean and std must have one value for each of {channels} channels, got {config.mean}")
    if config.source is None:
        raise ValueError(
            "no images are given: data.source must be a folder of images, shards or the name of a bundled set"
        )
    sources = find_sources(config.source, config.evaluation)
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    nodata = None if config.nodata is None else float(config.nodata)
    images = Images(sources.training, channels, image_size, dtype, strict, config.numbers, nodata)
    found = ""
    if config.mean is None or dtype is None or (config.numbers is None and dtype != torch.uint8):
        seen = survey(images)
        config, found = _completed(config, seen), seen.text
    config = replace(config, numbers=config.numbers or "shares")
    images = replace(images, dtype=getattr(torch, config.dtype), numbers=config.numbers, fill=config.mean)
    held_out = None if sources.evaluation is None else replace(images, source=sources.evaluation)
    if held_out is not None:
        held_out.read(0, image_size)  # raises if none is like those to train on
    return ImageDataset(
        images=images,
        augmentation=Augmentation(image_size, config.crop_scale, config.flip),
        patches=patches,
        seed=seed,
        evaluation=held_out,
        data=config,
        found=found,
    )


def _completed(config: DataConfig, seen: Survey) -> DataConfig:
    """Settings, with what was seen where they say nothing; raises ValueError where they contradict it."""
    mean, std = config.mean, config.std
    if mean is None or std is None:
        mean, std = seen.mean, seen.std
    elif seen.dtype == "float32":
        for channel, (own_mean, own, given_mean, given) in enumerate(zip(seen.mean, seen.std, mean, std, strict=True)):
            if not 1 / FAR_OFF < own / given < FAR_OFF or abs(own_mean - given_mean) > MEAN_OFF * own:
                raise ValueError(
                    f"data.mean and data.std are not of these images, {seen.text}: channel {channel} has mean "
                    f"{own_mean:.3g} and deviates by {own:.3g}, not {given_mean:.3g} and {given:.3g}; "
                    "with data.mean=null and data.std=null they are found"
                )
    return replace(config, dtype=seen.dtype, numbers=seen.numbers, mean=mean, std=std)
