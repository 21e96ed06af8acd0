"""Training images, augmented and with noise for their masks, and plain images for evaluation."""

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

MAX_UNREADABLE = 100  # in a row, after which the data set must be at fault


def first_readable(index: int, read: Callable[[int], T], images: int, strict: bool) -> tuple[T, tuple[str, ...]]:
    """``read`` the first readable of ``images`` images from ``index`` on; also returns which were unreadable before it.

    Raises UnreadableImage at the first unreadable image if ``strict``, else after ``MAX_UNREADABLE``.
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
    """One image, ready for the model.

    Attributes:
        image: ``(C, H, W)``, uint8 or float32, not normalised.
        noise: ``(N,)``, float32 in [0, 1), which determines its mask (``masking.noise_length``); empty if nothing is
            masked.
        label: class, -1 if unknown.
        unreadable: names and reasons of images that this one replaces.
    """

    image: Tensor
    noise: Tensor
    label: int
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Images(Dataset[Sample]):
    """Images of a source by index, resized to one size, without randomness.

    An unreadable image is replaced by the next readable one, or raises UnreadableImage if ``strict``. For ``dtype``,
    ``numbers``, ``nodata`` and ``fill`` see ``decoding.decode``, for ``share`` see ``augmentation.centred``.
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
        """The first readable image from ``index`` on, at its own size, its label, and the unreadable ones before it."""

        def at(place: int) -> tuple[Tensor, int]:
            options = (self.channels, self.dtype, at_least, self.numbers, self.nodata, self.fill)
            return self.source.load(place, *options), self.source.label(place)

        (image, label), unreadable = self.first_readable(index, at)
        return image, label, unreadable

    def first_readable(self, index: int, read: Callable[[int], T]) -> tuple[T, tuple[str, ...]]:
        """``read`` the first readable image from ``index`` on; also returns which were unreadable before it."""
        return first_readable(index, read, len(self.source), self.strict)


@dataclass(frozen=True)
class ImageDataset(Dataset[Sample]):
    """Training images by (epoch, index).

    Crop, flip and mask noise are functions of seed, epoch and index alone, so they are the same for any number of
    workers and processes and after any resumption.

    ``mask_noise`` is how many random numbers an image's mask needs. ``data`` holds the settings, completed by what was
    found in the images; ``found`` describes the findings in words.
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
