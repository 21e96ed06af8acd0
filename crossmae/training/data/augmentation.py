"""From an image of any size to one of the model's: random crop and flip for training, the centre for evaluation."""

import math

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from crossmae.training.data import randomness

GREY = 128  # of timm's own, for images of any mean
RATIO = (3 / 4, 4 / 3)  # width to height of a random crop, before it is stretched to the image size


def centred(image: Tensor, size: tuple[int, int], share: float = 1.0) -> Tensor:
    """The largest centred part of ``(C, h, w)`` with the aspect ratio of ``size`` (H, W), bicubic to ``(C, H, W)``.

    ``share`` is how much of its height and width is taken.
    """
    height, width = image.shape[-2:]
    scale = share * min(height / size[0], width / size[1])
    part = [min(side, max(1, round(scale * target))) for side, target in zip((height, width), size, strict=True)]
    top, left = (height - part[0]) // 2, (width - part[1]) // 2
    return _contiguous(F.resized_crop(image, top, left, *part, list(size), F.InterpolationMode.BICUBIC, antialias=True))


class RandAugment:
    """timm's RandAugment (arXiv 1909.13719) of RGB images ``(3, H, W)``, uint8; what leaves the image is grey.

    Draws from PyTorch's CPU generator the seed of those of Python and NumPy, which timm draws from.

    Raises:
        ValueError: if the description is none of timm's, such as "rand-m9-mstd0.5-inc1".
    """

    def __init__(self, description: str, size: tuple[int, int]):
        from timm.data.auto_augment import rand_augment_transform

        options = {"translate_const": int(0.45 * min(size)), "img_mean": (GREY,) * 3}
        try:
            self._change = rand_augment_transform(description, options)
        except (AssertionError, ValueError, KeyError) as error:
            raise ValueError(f"data.randaugment must be as in 'rand-m9-mstd0.5-inc1', got {description!r}") from error

    def __call__(self, image: Tensor) -> Tensor:
        """``(3, H, W)``, uint8, to the same."""
        with randomness.others_seeded():
            return F.pil_to_tensor(self._change(F.to_pil_image(image)))


class Augmentation:
    """MAE's: a random part of the image, stretched to ``size`` (bicubic), and mirrored half of the time.

    Takes uint8 or float32 ``(C, h, w)`` of any number of channels. Draws from PyTorch's CPU generator.

    Args:
        size: (H, W) of the result.
        crop_scale: range of the part's share of the area; None takes the centre instead.
        flip: whether to mirror left and right.
        randaugment: timm's description of RandAugment, applied to pictures of 8 bits last.
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
        """Size (H, W) of an image of which even the smallest crop need not be enlarged."""
        smallest = math.sqrt(self.crop_scale[0] * RATIO[0]) if self.crop_scale else 1.0
        return math.ceil(self.size[0] / smallest), math.ceil(self.size[1] / smallest)


def _contiguous(image: Tensor) -> Tensor:
    # Rows of pixels as images are decoded are faster to resize than planes, which is what batches are made of.
    return image.contiguous(memory_format=torch.contiguous_format)
