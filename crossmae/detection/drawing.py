"""Draw detections: masks, boxes, names and scores on the images."""

import os
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from crossmae.figures import draw_reconstructions

PIXELS = 320  # the longer side of a picture
LEAST_SCORE = 0.5  # of the detections drawn
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")


def draw_detections(
    images: Sequence[Tensor],
    columns: Mapping[str, Sequence[dict[str, Tensor]]],
    categories: Sequence[tuple[int, str]],
    path: str | os.PathLike[str],
) -> None:
    """Draw a row for each image: the image itself, then one copy per column, with that column's objects.

    Args:
        images: ``(C, H, W)``, uint8, of any size.
        columns: by title; for each image, torchvision's boxes, labels and masks, ``masks`` being (N, H, W) or
            (N, 1, H, W). If there are ``scores``, only objects from ``LEAST_SCORE`` on are drawn.
        categories: for the labels.
        path: where to write the PNG.
    """
    plain = {"image": [_enlarged(image) for image in images]}
    drawn = {
        title: [_drawn(image, objects, categories) for image, objects in zip(images, of_images, strict=True)]
        for title, of_images in columns.items()
    }
    pictures = {title: torch.stack([_squared(one) for one in ones]) for title, ones in {**plain, **drawn}.items()}
    draw_reconstructions(pictures, path)


def _drawn(image: Tensor, objects: dict[str, Tensor], categories: Sequence[tuple[int, str]]) -> Tensor:
    """The image with its objects, enlarged: ``(3, h, w)``, in [0, 1]."""
    picture = (_enlarged(image) * 255).round().to(torch.uint8)
    scores = objects.get("scores")
    kept = torch.ones_like(objects["labels"], dtype=torch.bool) if scores is None else scores >= LEAST_SCORE
    if not kept.any():
        return picture / 255
    labels = objects["labels"][kept].tolist()
    names = [categories[label - 1][1] for label in labels]
    if scores is not None:
        names = [f"{name} {score:.2f}" for name, score in zip(names, scores[kept].tolist(), strict=True)]
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    ratio = picture.shape[-1] / image.shape[-1], picture.shape[-2] / image.shape[-2]
    masks = objects["masks"][kept].float().reshape(len(labels), 1, *image.shape[-2:])
    masks = F.interpolate(masks, size=picture.shape[-2:], mode="nearest")[:, 0] > 0.5
    picture = draw_segmentation_masks(picture, masks.cpu(), alpha=0.5, colors=colours)
    boxes = objects["boxes"][kept].cpu() * torch.tensor(ratio).repeat(2)
    return draw_bounding_boxes(picture, boxes, names, colours, width=2, label_colors="white", fill_labels=True) / 255


def _enlarged(image: Tensor) -> Tensor:
    """``(C, H, W)``, uint8, as RGB in [0, 1] with the longer side resized to ``PIXELS``."""
    colours = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    scale = PIXELS / max(image.shape[-2:])
    size = [max(1, round(scale * side)) for side in image.shape[-2:]]
    mode = "nearest-exact" if scale >= 2 else "bilinear"
    return F.interpolate(colours[None].cpu() / 255, size=size, mode=mode, antialias=mode == "bilinear")[0]


def _squared(picture: Tensor) -> Tensor:
    """Pad with white at the bottom and right."""
    return F.pad(picture, (0, PIXELS - picture.shape[2], 0, PIXELS - picture.shape[1]), value=1.0)
