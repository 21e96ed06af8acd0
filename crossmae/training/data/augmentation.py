"""From any image to the model's image size: random crop and flip for training, centre crop for evaluation."""

import math

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from crossmae.training.data import randomness

GREY = 128  # timm's own fill value, whatever the images' mean
RATIO = (3 / 4, 4 / 3)  # width to height of a random crop, before it is resized


def centred(image: Tensor, size: tuple[int, int], share: float = 1.0) -> Tensor:
    """The largest centre crop of ``(C, h, w)`` with the aspect ratio of ``size`` (H, W), resized (bicubic) to it.

    ``share`` is the fraction of that crop's height and width to keep. Returns ``(C, H, W)``.
    """
    height, width = image.shape[-2:]
    scale = share * min(height / size[0], width / size[1])
    part = [min(side, max(1, round(scale * target))) for side, target in zip((height, width), size, strict=True)]
    top, left = (height - part[0]) // 2, (width - part[1]) // 2
    return _contiguous(F.resized_crop(image, top, left, *part, list(size), F.InterpolationMode.BICUBIC, antialias=True))


class RandAugment:
    """timm's RandAugment (arXiv 1909.13719) for uint8 RGB images ``(3, H, W)``; uncovered areas are filled with grey.

    timm draws from Python's and NumPy's generators, whose seed is drawn from PyTorch's CPU generator here.

    Raises:
        ValueError: if timm does not accept the description; a valid one is "rand-m9-mstd0.5-inc1".
    """

    def __init__(self, description: str, size: tuple[int, int]):
        from timm.data.auto_augment import rand_augment_transform

        options = {"translate_const": int(0.45 * min(size)), "img_mean": (GREY,) * 3}
        try:
            self._change = rand_augment_transform(description, options)
        except (AssertionError, ValueError, KeyError) as error:
            raise ValueError(f"data.randaugment must be like 'rand-m9-mstd0.5-inc1', got {description!r}") from error

    def __call__(self, image: Tensor) -> Tensor:
        """Augment ``(3, H, W)``, uint8."""
        with randomness.others_seeded():
            return F.pil_to_tensor(self._change(F.to_pil_image(image)))


class Augmentation:
    """MAE's augmentation: a random crop, resized to ``size`` (bicubic), and flipped half of the time.

    Takes uint8 or float32 ``(C, h, w)`` of any number of channels. Draws from PyTorch's CPU generator.

    Args:
        size: (H, W) of the result.
        crop_scale: range of the crop's fraction of the area; None takes the centre crop instead.
        flip: whether to flip horizontally.
        randaugment: timm's description of RandAugment, applied last; for 8-bit images only.
    """

    def __init__(
        self, size: tuple[int, int], crop_scale: tuple[float, float] | None, flip: bool, randaugment: str | None = None
    ):
        self.size, self.crop_scale = size, crop_scale
        self._crop = crop_scale and v2.RandomResizedCrop(
            size, crop_scale, RATIO, F.InterpolationMode.BICUBIC, antialias=True
        )
        self._flip = v2.RandomHorizontalFlip() if flip else None
        self._randaugment = None if randaugment is None else RandAugment(randaugment, size)

    def __call__(self, image: Tensor) -> Tensor:
        """``(C, h, w)`` to ``(C, *size)``."""
        image = self._crop(image) if self._crop else centred(image, self.size)
        image = self._flip(image) if self._flip else image
        return _contiguous(self._randaugment(image) if self._randaugment else image)

    @property
    def at_least(self) -> tuple[int, int]:
        """Size (H, W) of an image whose smallest crop need not be enlarged."""
        smallest = math.sqrt(self.crop_scale[0] * RATIO[0]) if self.crop_scale else 1.0
        return math.ceil(self.size[0] / smallest), math.ceil(self.size[1] / smallest)


def _contiguous(image: Tensor) -> Tensor:
    # Resizing is faster on channels-last memory, as images are decoded; batches are channels-first.
    return image.contiguous(memory_format=torch.contiguous_format)
