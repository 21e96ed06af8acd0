"""Real images that ship with Python packages, for trials and studies: nothing is downloaded."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from crossmae.training.data.source import Source
from crossmae.training.data.values import Picture, no_data

BUNDLED = ("digits", "photographs")

# scikit-image's photographs that are in its wheel.
PHOTOGRAPHS = [
    *("astronaut", "brick", "camera", "cat", "cell", "clock", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "text"),
]
CROP = 32
TRAINING_CROPS, TEST_CROPS = 200, 50  # of each photograph
TRAINING_SHARE = 0.6  # of a photograph's width, from the left
GREY, CONTRAST = 127.5, 32.0  # mean and standard deviation of an 8-bit crop: almost four deviations fit


class ImagesInMemory(Source):
    """Images ``(N, C, H, W)``, uint8, and labels ``(N,)``."""

    labelled = True

    def __init__(self, images: Tensor, labels: Tensor, classes: tuple[str, ...]):
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    @override
    def read(
        self, index: int, channels: int, at_least: tuple[int, int] | None = None, nodata: float | None = None
    ) -> Picture:
        array = self.images[index].permute(1, 2, 0).numpy()
        missing = None if nodata is None else no_data(array, (nodata,))
        return Picture(f"image {index}", array, full=255, missing=missing)

    @override
    def label(self, index: int) -> int:
        return int(self.labels[index])


def bundled_set(name: str) -> tuple[ImagesInMemory, ImagesInMemory]:
    """The training and test part of a bundled data set.

    - "digits": scikit-learn's 1,797 scanned handwritten digits, greyscale, enlarged from 8 to 32 pixels; a quarter of
      each class is held out. Digits must not be flipped or cropped.
    - "photographs": RGB crops of 32 pixels from 19 photographs of scikit-image and scikit-learn, each crop standardised
      on its own; the label is the photograph. Training crops come from its left 60 %, test crops from its right 40 %.
    """
    return {"digits": _digits, "photographs": _photographs}[name]()


@lru_cache(1)
def _digits() -> tuple[ImagesInMemory, ImagesInMemory]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    images = torch.from_numpy(scans.images).float()[:, None] * (255 / 16)
    images = F.interpolate(images, scale_factor=4, mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = torch.from_numpy(scans.target).long()
    training, test = train_test_split(torch.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    classes = tuple(str(name) for name in scans.target_names)
    return ImagesInMemory(images[training], labels[training], classes), ImagesInMemory(
        images[test], labels[test], classes
    )


@lru_cache(1)
def _photographs() -> tuple[ImagesInMemory, ImagesInMemory]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = {name: getattr(data, name)() for name in PHOTOGRAPHS}
    samples = load_sample_images()
    pictures |= {
        name.partition(".")[0]: picture for name, picture in zip(["china", "flower"], samples.images, strict=True)
    }
    rng = np.random.default_rng(0)
    parts = []
    for share, crops in (((0.0, TRAINING_SHARE), TRAINING_CROPS), ((TRAINING_SHARE, 1.0), TEST_CROPS)):
        images = []
        for picture in pictures.values():
            coloured = np.broadcast_to(picture if picture.ndim == 3 else picture[..., None], (*picture.shape[:2], 3))
            height, width = picture.shape[:2]
            left, right = (round(end * width) for end in share)
            for _ in range(crops):
                y, x = rng.integers(height - CROP + 1), rng.integers(left, right - CROP + 1)
                crop = coloured[y : y + CROP, x : x + CROP].astype(np.float64)
                crop = (crop - crop.mean()) / (crop.std() + 1e-6)
                images.append(np.clip(np.rint(GREY + CONTRAST * crop), 0, 255).astype(np.uint8))
        labels = torch.arange(len(pictures)).repeat_interleave(crops)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        parts.append(ImagesInMemory(stacked, labels, tuple(pictures)))
    return parts[0], parts[1]
