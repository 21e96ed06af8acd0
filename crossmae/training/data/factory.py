"""From settings to a data set: find its images, and what must be known of them before work starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from crossmae.training.data.augmentation import Augmentation
from crossmae.training.data.bundled import BUNDLED, bundled_set
from crossmae.training.data.config import DataConfig
from crossmae.training.data.dataset import ImageDataset, Images
from crossmae.training.data.folders import image_files
from crossmae.training.data.shards import expanded, shards
from crossmae.training.data.source import Source
from crossmae.training.data.statistics import FAR_OFF, MEAN_OFF, Survey, survey


def open_images(
    config: DataConfig,
    channels: int,
    image_size: tuple[int, int],
    mask_noise: int,
    seed: int = 0,
    strict: bool = False,
) -> ImageDataset:
    """Find the images of a run, and inspect some of them for the settings that are not given.

    Args:
        config: where images are and what is done to them.
        channels, image_size: the model's number of channels and (H, W).
        mask_noise: random numbers that the mask of an image takes, see ``masking.noise_length``.
        seed: of crops, flips and masks.
        strict: refuse images that cannot be read, instead of taking the next one.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, ValueError: if there are no images, they cannot be read,
            or their numbers are ambiguous.
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
    images = replace(images, share=config.evaluation_share)
    if config.randaugment is not None and (channels, config.dtype) != (3, "uint8"):
        raise ValueError(
            f"data.randaugment is for RGB pictures of 8 bits, these are {config.dtype} of {channels} channel(s); "
            "data.randaugment=null leaves it out"
        )
    held_out = None if sources.evaluation is None else replace(images, source=sources.evaluation)
    if held_out is not None:
        held_out.read(0, image_size)  # raises if none is like those to train on
    return ImageDataset(
        images=images,
        augmentation=Augmentation(image_size, config.crop_scale, config.flip, config.randaugment),
        mask_noise=mask_noise,
        seed=seed,
        evaluation=held_out,
        data=config,
        found=found,
    )


def _completed(config: DataConfig, seen: Survey) -> DataConfig:
    """Settings completed by what was found; raises ValueError if the two contradict each other."""
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


@dataclass(frozen=True)
class Sources:
    """Images to train on, and held-out ones to evaluate on, if any."""

    training: Source
    evaluation: Source | None = None


def find_sources(where: str, evaluation: str | None = None) -> Sources:
    """The images that a name or path stands for.

    - the name of a bundled set, "digits" or "photographs", each with a part held out;
    - a folder with ``train`` and ``val`` in it, as of ImageNet;
    - WebDataset shards: a .tar file, a folder of them, or a pattern such as ``shards/train-{000..012}.tar`` with braces
      and wildcards;
    - any other folder: the images in it and below it. If all lie in subfolders, two or more, these are the classes.

    Args:
        where: see above.
        evaluation: the same for held-out images, instead of those that belong to ``where``.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, ValueError: if there is nothing to read.
    """
    found = Sources(*bundled_set(where)) if where in BUNDLED else _at_path(where)
    if evaluation is None:
        return found
    if evaluation in BUNDLED:
        return Sources(found.training, bundled_set(evaluation)[1])
    other = _at_path(evaluation, found.training.classes)
    return Sources(found.training, other.evaluation or other.training)


def _at_path(where: str, classes: Sequence[str] | None = None) -> Sources:
    path = Path(where)
    if not path.exists() and any(character in where for character in "{*?["):
        return Sources(shards(expanded(where)))
    known = f"a folder of images, .tar shards or a bundled set ({', '.join(BUNDLED)})"
    if not where or not path.exists():
        raise FileNotFoundError(f"there is no {where!r}; {known} is needed")
    if path.is_file():
        if path.suffix.lower() != ".tar":
            raise NotADirectoryError(f"{path} is a file; {known} is needed")
        return Sources(shards([path]))
    if (path / "train").is_dir() and (path / "val").is_dir():
        training = _in_folder(path / "train", classes)
        return Sources(training, _in_folder(path / "val", training.classes))
    return Sources(_in_folder(path, classes))


def _in_folder(folder: Path, classes: Sequence[str] | None) -> Source:
    tars = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.is_file())
    return shards(tars) if tars else image_files(folder, classes)
