"""Generated images of discs, squares and triangles, with exact boxes and masks, for trials and tests."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as rle
from torch import Tensor

from crossmae.detection.annotations import Annotations, checked

Bool = npt.NDArray[np.bool_]

SIDE = 64  # of an image, in pixels
NAMES = {1: "disc", 3: "square", 7: "triangle"}  # ids skip numbers, as COCO's do
LEAST_SEEN = 0.6  # visible fraction of an object; if others cover more, it is not drawn
_PARTS = {"train": 0, "val": 1}


def shapes(part: str, images: int) -> tuple[Annotations, "ShapeImages"]:
    """Images ``(3, 64, 64)`` of the part "train" or "val" and their annotations, with one to five objects each.

    Colours are random and the background is noise, so only shape identifies the category. Objects may cover others and
    are cut at the border; masks and boxes are those of the visible part.
    """
    pictures, annotations = [], []
    for number in range(images):
        image, objects = _scene(np.random.default_rng([_PARTS[part], number]))
        pictures.append(image)
        annotations += [_annotation(number, category, mask) for category, mask in objects]
    content = {
        "images": [{"id": i, "file_name": str(i), "height": SIDE, "width": SIDE} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in NAMES.items()],
    }
    return checked(content, f"shapes, {part}"), ShapeImages(torch.from_numpy(np.stack(pictures)))


class ShapeImages:
    """Images ``(N, 3, H, W)``, by name."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __call__(self, name: str) -> Tensor:
        """The image ``(3, H, W)`` whose index the name is."""
        return self._images[int(name)]


def _scene(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], list[tuple[int, Bool]]]:
    """An image ``(3, H, W)``, and category and visible mask of each object."""
    image = rng.uniform(0, 255, 3)[:, None, None] + rng.normal(0, 20, (3, SIDE, SIDE))
    seen: list[tuple[int, Bool]] = []
    for category in rng.choice(list(NAMES), size=rng.integers(1, 6)):
        mask = _shape(category, rng)
        behind = [(number, other & ~mask) for number, other in seen]
        if any(left.sum() < LEAST_SEEN * other.sum() for (_, left), (_, other) in zip(behind, seen, strict=True)):
            continue
        seen = [*behind, (int(category), mask)]
        image = np.where(mask, rng.uniform(0, 255, 3)[:, None, None] + rng.normal(0, 8, image.shape), image)
    return image.clip(0, 255).astype(np.uint8), seen


def _shape(category: int, rng: np.random.Generator) -> Bool:
    """The mask ``(H, W)`` of a disc, square or triangle of 10 to 28 pixels with its centre in the image."""
    radius, turn = rng.uniform(5, 14), rng.uniform(0, 2 * np.pi)
    row, column = np.indices((SIDE, SIDE)) - rng.uniform(radius / 2, SIDE - radius / 2, (2, 1, 1))
    if NAMES[category] == "disc":
        return np.asarray(row**2 + column**2 <= radius**2)
    corners = 4 if NAMES[category] == "square" else 3
    # The points inside all edges of a regular polygon.
    angles = turn + 2 * np.pi * np.arange(corners)[:, None, None] / corners
    return np.asarray((row * np.sin(angles) + column * np.cos(angles) <= radius * np.cos(np.pi / corners)).all(0))


def _annotation(image: int, category: int, mask: Bool) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    packed = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "segmentation": {**packed, "counts": packed["counts"].decode("ascii")},
    }
