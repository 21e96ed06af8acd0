"""Images to train on, augmented and with noise for their masks, and plain images for evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossmae.model.config import Numbers
from crossmae.training.data import randomness
from crossmae.training.data.augmentation import Augmentation, centred
from crossmae.training.data.config import DataConfig
from crossmae.training.data.source import Source
from crossmae.training.data.values import UnreadableImage

T = TypeVar("T")

MAX_UNREADABLE = 100  # in a row, after which it is the data set that is at fault


def first_readable(index: int, read: Callable[[int], T], images: int, strict: bool) -> tuple[T, tuple[str, ...]]:
    """``read`` at the first of ``images`` places, from ``index`` on, where it succeeds, and what was unreadable before.

    Raises UnreadableImage at the first that cannot be read if ``strict``, else after ``MAX_UNREADABLE``.
    """
    unreadable: list[str] = []
    for step in range(min(MAX_UNREADABLE, images)):
        try:
            return read((index + step) % images), tuple(unreadable)
        except UnreadableImage as error:
            if strict:
                raise
            unreadable.append(str(error))
    if len(unreadable) == 1:
        raise UnreadableImage(f"the only image cannot be read: {unreadable[0]}")
    raise UnreadableImage(f"{len(unreadable)} images in a row cannot be read; the first: {unreadable[0]}")


@dataclass(frozen=True)
class Sample:
    """One image as the model takes it.

    Attributes:
        image: ``(C, H, W)``, uint8 or float32, not normalised.
        noise: ``(N,)``, float32 in [0, 1): what its mask is made of (``masking.noise_length``); empty where nothing is
            masked.
        label: class, -1 if unknown.
        unreadable: names and reasons of images in whose place this one came.
    """

    image: Tensor
    noise: Tensor
    label: int
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Images(Dataset[Sample]):
    """Images of a source by index, all of one size, nothing random about them.

    An image that cannot be read is replaced by the next one that can, or raises UnreadableImage if ``strict``. For
    ``dtype``, ``numbers``, ``nodata`` and ``fill`` see ``decoding.decode``, for ``share`` see ``augmentation.centred``.
    """

    source: Source
    channels: int
    image_size: tuple[int, int]
    dtype: torch.dtype | None = None
    strict: bool = False
    numbers: Numbers | None = None
    nodata: float | None = None
    fill: tuple[float, ...] | None = None
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        image, label, unreadable = self.read(index, self.image_size)
        return Sample(centred(image, self.image_size, self.share), torch.empty(0), label, unreadable)

    def read(self, index: int, at_least: tuple[int, int]) -> tuple[Tensor, int, tuple[str, ...]]:
        """The first readable image from ``index`` on, in its own size, its label, and what was unreadable before it."""

        def at(place: int) -> tuple[Tensor, int]:
            options = (self.channels, self.dtype, at_least, self.numbers, self.nodata, self.fill)
            return self.source.load(place, *options), self.source.label(place)

        (image, label), unreadable = self.first_readable(index, at)
        return image, label, unreadable

    def first_readable(self, index: int, read: Callable[[int], T]) -> tuple[T, tuple[str, ...]]:
        """``read`` at the first place from ``index`` on where it succeeds, and what was unreadable before."""
        return first_readable(index, read, len(self.source), self.strict)


@dataclass(frozen=True)
class ImageDataset(Dataset[Sample]):
    """Images to train on, by (epoch, index).

    Crop, flip and mask noise are functions of seed, epoch and index alone, so they are the same for any number of
    workers and processes and after any resumption.

    ``mask_noise`` is how many random numbers the mask of an image takes. ``data`` are the settings with all that was
    found in the images, which ``found`` tells in words.
    """

    images: Images
    augmentation: Augmentation
    mask_noise: int
    seed: int = 0
    evaluation: Images | None = None
    data: DataConfig = field(default_factory=DataConfig)
    found: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, index = place
        rng = randomness.of_sample(self.seed, epoch, index)
        noise = torch.from_numpy(rng.random(self.mask_noise, dtype="float32"))
        image, label, unreadable = self.images.read(index, self.augmentation.at_least)
        with randomness.torch_seeded(int(rng.integers(2**63))):
            image = self.augmentation(image)
        return Sample(image, noise, label, unreadable)
