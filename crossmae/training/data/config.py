"""What a run trains on, as recipes and the command line say it."""

from dataclasses import dataclass
from typing import Literal


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
        dtype: of images until they are normalised on the device: "uint8", or "float32" for files of more than 8 bits.
        mean: of each channel as a share of full scale, taken off on the device; found from 1,000 images if null.
        std: standard deviation of each channel, likewise, given together with the mean.
        workers: processes that load images, for each training process; 0 loads between the steps.
    """

    source: str | None = None
    evaluation: str | None = None
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    flip: bool = True
    dtype: Literal["uint8", "float32"] = "uint8"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 4

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be a range within (0, 1], got {self.crop_scale}")
        if self.dtype not in ("uint8", "float32"):
            raise ValueError(f"dtype must be 'uint8' or 'float32', got {self.dtype!r}")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError(
                f"mean and std must be given together, one of each per channel, got {self.mean} and {self.std}"
            )
        if self.std is not None and min(self.std, default=0) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
