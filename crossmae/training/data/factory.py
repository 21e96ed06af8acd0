"""From settings to a data set: find its images and inspect them before work starts."""

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
from crossmae.training.recipe import RECIPE


def open_images(
    config: DataConfig,
    channels: int,
    image_size: tuple[int, int],
    mask_noise: int,
    seed: int = 0,
    strict: bool = False,
) -> ImageDataset:
    """Find the images of a run, and infer the settings that are not given from some of them.

    Args:
        config: where the images are and how to process them.
        channels, image_size: the model's number of channels and (H, W).
        mask_noise: how many random numbers an image's mask needs, see ``masking.noise_length``.
        seed: of crops, flips and masks.
        strict: refuse unreadable images instead of taking the next one.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, ValueError: if there are no images, they cannot be read,
            or it is ambiguous what their numbers mean.
    """
    if config.mean is not None and len(config.mean) != channels:
        raise ValueError(f"mean and std must have one value for each of {channels} channels, got {config.mean}")
    if config.source is None:
        raise ValueError("no images given: data.source must be a folder of images, shards or the name of a bundled set")
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
            f"data.randaugment needs 8-bit RGB images, these are {config.dtype} with {channels} channel(s); "
            "data.randaugment=null turns it off"
        )
    held_out = None if sources.evaluation is None else replace(images, source=sources.evaluation)
    if held_out is not None:
        held_out.read(0, image_size)  # raises if none matches the training images
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
    """The settings, completed by those found in the images; raises ValueError if the two contradict each other."""
    mean, std = config.mean, config.std
    if mean is None or std is None:
        mean, std = seen.mean, seen.std
    elif seen.dtype == "float32":
        for channel, (own_mean, own, given_mean, given) in enumerate(zip(seen.mean, seen.std, mean, std, strict=True)):
            if not 1 / FAR_OFF < own / given < FAR_OFF or abs(own_mean - given_mean) > MEAN_OFF * own:
                raise ValueError(
                    f"data.mean and data.std do not fit these images, {seen.text}: channel {channel} has mean "
                    f"{own_mean:.3g} and deviation {own:.3g}, not {given_mean:.3g} and {given:.3g}; "
                    "data.mean=null and data.std=null compute them"
                )
    return replace(config, dtype=seen.dtype, numbers=seen.numbers, mean=mean, std=std)


@dataclass(frozen=True)
class Sources:
    """Training images, and held-out images for evaluation, if any."""

    training: Source
    evaluation: Source | None = None


def find_sources(where: str, evaluation: str | None = None) -> Sources:
    """Find the images for a name or path.

    - the name of a bundled set, "digits" or "photographs", each with a held-out part; a folder of that name is refused,
      unless it is the folder of a run, or given as ``./digits``;
    - a folder that contains ``train`` and ``val``, like ImageNet's;
    - WebDataset shards: a .tar file, a folder of them, or a pattern such as ``shards/train-{000..012}.tar`` with braces
      and wildcards;
    - any other folder: the images in it and below it. If all are in subfolders, at least two, these are the classes.

    Args:
        where: see above.
        evaluation: the same for held-out images, replacing those of ``where``.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError, ValueError: if there is nothing to read.
    """
    found = Sources(*bundled_set(where)) if _is_bundled(where) else _at_path(where)
    if evaluation is None:
        return found
    if _is_bundled(evaluation):
        return Sources(found.training, bundled_set(evaluation)[1])
    other = _at_path(evaluation, found.training.classes)
    return Sources(found.training, other.evaluation or other.training)


def _is_bundled(where: str) -> bool:
    """Whether a bundled set is meant; raises ValueError if it could be a folder as well."""
    if where in BUNDLED and Path(where).is_dir() and not Path(where, RECIPE).exists():
        raise ValueError(f"{where!r} is a bundled set and a folder here; write ./{where} for the folder, or rename it")
    return where in BUNDLED


def _at_path(where: str, classes: Sequence[str] | None = None) -> Sources:
    path = Path(where)
    if not path.exists() and any(character in where for character in "{*?["):
        return Sources(shards(expanded(where)))
    known = f"a folder of images, .tar shards or a bundled set ({', '.join(BUNDLED)})"
    if not where or not path.exists():
        raise FileNotFoundError(f"{where!r} does not exist; expected {known}")
    if path.is_file():
        if path.suffix.lower() != ".tar":
            raise NotADirectoryError(f"{path} is a file; expected {known}")
        return Sources(shards([path]))
    if (path / "train").is_dir() and (path / "val").is_dir():
        training = _in_folder(path / "train", classes)
        return Sources(training, _in_folder(path / "val", training.classes))
    return Sources(_in_folder(path, classes))


def _in_folder(folder: Path, classes: Sequence[str] | None) -> Source:
    tars = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.is_file())
    return shards(tars) if tars else image_files(folder, classes)
