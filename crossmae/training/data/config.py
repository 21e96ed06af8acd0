"""Settings for a run's images, in recipes and on the command line."""

import math
from dataclasses import dataclass
from typing import Literal

from crossmae.model.config import Numbers


@dataclass(frozen=True)
class DataConfig:
    """Which images to use and how to process them.

    Args:
        source: a folder of images, nested or flat; one that contains ``train`` and ``val``, like ImageNet's; WebDataset
            .tar shards, their folder or a pattern such as ``shards/train-{000..012}.tar``; or a bundled set, "digits"
            or "photographs" ("./digits" is a folder of that name).
        evaluation: held-out images for the online evaluation, in the same forms, if the source has none.
        crop_scale: range of a random crop's fraction of the image; null takes the largest centre crop.
        flip: whether to flip images horizontally at random.
        randaugment: timm's description of RandAugment for training images, such as "rand-m9-mstd0.5-inc1"; needs 8-bit
            RGB; null for none.
        evaluation_share: fraction of the largest centre crop's height and width that an evaluation sees.
        dtype: of images until they are normalised on the device: "uint8", which refuses images that need more than 8
            bits, "float32", or "auto", which chooses by the content of 1,000 images.
        numbers: "shares": fractions of full scale, which unsigned integers of 8 and 16 bits have, so that 255 and
            65,535 are equally bright; "values": all numbers as they are. If null, inferred from 1,000 images, which
            must agree.
        nodata: the value that marks missing data, or "nan" if only non-finite values do; if set, non-finite values and
            the one named by a TIFF's GDAL_NODATA tag always count as missing. Such pixels are filled with the channel's
            mean. If null, images with values that are not finite or look like no data (-9999) are refused, and so are
            deep images in which one value far from all others is repeated often.
        mean: of each channel, in the numbers above, subtracted on the device; computed from 1,000 images if null.
        std: standard deviation of each channel, likewise; must be given together with the mean.
        workers: processes that load images, per training process; 0 loads in the training process itself.
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
            raise ValueError("dtype='uint8' can only hold shares of 255; with numbers='values' or nodata use 'float32'")
        if isinstance(self.nodata, float) and math.isnan(self.nodata):
            object.__setattr__(self, "nodata", "nan")  # a string equals itself and is valid JSON
        if self.nodata not in (None, "nan") and not (
            isinstance(self.nodata, (int, float)) and math.isfinite(self.nodata)
        ):
            raise ValueError(f"nodata must be a finite number or 'nan', got {self.nodata!r}")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(
                f"mean and std must be given together, with one value per channel, got {self.mean} and {self.std}"
            )
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if self.std is not None and not all(0 < value < math.inf for value in self.std or (0,)):
            raise ValueError(f"std must be positive and finite, got {self.std}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
