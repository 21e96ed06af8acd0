"""Large-scale jitter (arXiv 2012.07177): scale an image and its objects randomly, then crop or pad to a square."""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

Target = dict[str, Tensor]
"""An image's ``boxes`` (N, 4), left, top, right and bottom in pixels, ``labels`` (N,) and ``masks`` (N, H, W)."""


def jitter(
    image: Tensor, target: Target, side: int, scale: tuple[float, float], flip: bool, rng: np.random.Generator
) -> tuple[Tensor, Target]:
    """A random crop of an image at a random scale, at most ``side`` x ``side`` pixels; flipped half of the time.

    Args:
        image: ``(C, h, w)``, uint8.
        target: its objects.
        side: of the network's square input; padding happens there.
        scale: range, uniform, relative to the scale at which the whole image fits the square.
        flip: whether to flip horizontally at all.
        rng: source of all randomness.

    Returns:
        The crop and the objects in it. The box of a cut object bounds its visible part; objects without a visible
        pixel are dropped.
    """
    height, width = image.shape[-2:]
    factor = rng.uniform(*scale) * side / max(height, width)
    # Crop before resizing, which saves work.
    part = [min(length, max(1, round(side / factor))) for length in (height, width)]
    top, left = (int(rng.integers(length - size + 1)) for length, size in zip((height, width), part, strict=True))
    size = [min(side, max(1, round(length * factor))) for length in part]
    image = F.resized_crop(image, top, left, *part, size, antialias=True)
    masks = F.resized_crop(target["masks"], top, left, *part, size, InterpolationMode.NEAREST)
    boxes = _cut(target["boxes"], top, left, part, size, masks)
    kept = masks.flatten(1).any(1).bool() & (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, masks, labels = boxes[kept], masks[kept], target["labels"][kept]
    if flip and rng.random() < 0.5:
        image, masks = image.flip(-1), masks.flip(-1)
        boxes = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], dim=1)
    return image.contiguous(), {"boxes": boxes, "labels": labels, "masks": masks.contiguous()}


def _cut(boxes: Tensor, top: int, left: int, part: list[int], size: list[int], masks: Tensor) -> Tensor:
    """Boxes in a crop, resized; a box that the crop cuts is shrunk to the visible part of its mask."""
    ratio = torch.tensor([size[1] / part[1], size[0] / part[0]]).repeat(2)
    moved = (boxes - torch.tensor([left, top, left, top])) * ratio
    limits = torch.tensor([size[1], size[0]]).repeat(2).float()
    inside = moved.clamp(min=torch.zeros(4), max=limits)
    seen = masks.flatten(1).any(1).bool()
    extents = torch.zeros_like(inside)
    if seen.any():
        extents[seen] = masks_to_boxes(masks[seen]) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # include the last pixel
    was_cut = (inside != moved).any(1)
    around = torch.cat([inside[:, :2].maximum(extents[:, :2]), inside[:, 2:].minimum(extents[:, 2:])], dim=1)
    return torch.where(was_cut[:, None], around, inside)
