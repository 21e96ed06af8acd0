"""The images of a run, as recipes and the command line name them."""

import math
from dataclasses import dataclass
from typing import Literal

from crossmae.model.config import Numbers


@dataclass(frozen=True)
class DataConfig:
    """Images and what is done to them.

    Args:
        source: a folder of images, nested or flat; one with ``train`` and ``val`` in it, as ImageNet's; .tar shards of
            WebDataset, their folder or a pattern such as ``shards/train-{000..012}.tar``; or a bundled set, "digits" or
            "photographs".
        evaluation: held-out images for the online evaluation, in the same forms, where the source has none itself.
        crop_scale: range of the share of an image that a random crop takes; null takes the largest centred part.
        flip: whether to mirror images at random.
        randaugment: timm's description of RandAugment for images to train on, such as "rand-m9-mstd0.5-inc1", of RGB
            pictures of 8 bits; null for none.
        evaluation_share: how much of the height and width of the largest centred part an evaluation looks at.
        dtype: of images until they are normalised on the device: "uint8", which refuses images that 8 bits cannot hold,
            "float32", or "auto", which chooses by what 1,000 images hold.
        numbers: "shares": of full scale, which unsigned integers of 8 and 16 bits have, so that 255 and 65,535 are as
            bright; "values": all numbers as they are. Found from 1,000 images if null, and refused if they differ.
        nodata: value that stands for no data, "nan" for none but those that are not finite, which always count then; so
            does what a TIFF's tag GDAL_NODATA names. Such pixels are filled with the channel's mean. If null, images
            with values that are not finite or look like no data (-9999) are refused, and so is a value of deep images
            that is often repeated far from all others.
        mean: of each channel, of numbers as above, taken off on the device; found from 1,000 images if null.
        std: standard deviation of each channel, likewise, given together with the mean.
        workers: processes that load images, for each training process; 0 loads between the steps.
    """

    source: str | None = None
    evaluation: str | None = None
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    flip: bool = True
    randaugment: str | None = None
    evaluation_share: float = 1.0
    dtype: Literal["auto", "uint8", "float32"] = "auto"
    numbers: Numbers | None = None
    nodata: float | Literal["nan"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 4

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be a range within (0, 1], got {self.crop_scale}")
        if not 0 < self.evaluation_share <= 1:
            raise ValueError(f"evaluation_share must lie in (0, 1], got {self.evaluation_share}")
        if self.dtype not in ("auto", "uint8", "float32"):
            raise ValueError(f"dtype must be 'auto', 'uint8' or 'float32', got {self.dtype!r}")
        if self.numbers not in (None, "shares", "values"):
            raise ValueError(f"numbers must be 'shares' or 'values', got {self.numbers!r}")
        if self.dtype == "uint8" and (self.numbers == "values" or self.nodata is not None):
            raise ValueError("dtype='uint8' keeps shares of 255 alone; for numbers='values' or nodata it is 'float32'")
        if isinstance(self.nodata, float) and math.isnan(self.nodata):
            object.__setattr__(self, "nodata", "nan")  # which equals itself, and is JSON
        if self.nodata not in (None, "nan") and not (
            isinstance(self.nodata, (int, float)) and math.isfinite(self.nodata)
        ):
            raise ValueError(f"nodata must be a finite number or 'nan', got {self.nodata!r}")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(
                f"mean and std must be given together, one of each per channel, got {self.mean} and {self.std}"
            )
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if self.std is not None and not all(0 < value < math.inf for value in self.std or (0,)):
            raise ValueError(f"std must be positive and finite, got {self.std}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
