"""Read and check annotations in COCO's format (cocodataset.org/#format-data), counting what is left out."""

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle
from pycocotools.coco import COCO

from crossmae.checkpoint.messages import first_few


@dataclass(frozen=True)
class Annotations:
    """Images and the objects in them.

    Attributes:
        images: COCO's records (``id``, ``file_name``, ``height``, ``width``), in the order of their ids.
        objects: annotations of each image, by its id: ``bbox`` (left, top, width, height in pixels), ``segmentation``,
            ``category_id``, ``area``, ``iscrowd``.
        categories: id and name of each, in the order of the ids, which may skip numbers.
        left_out: names of unusable images and annotations, by reason.
    """

    images: list[dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]]
    categories: tuple[tuple[int, str], ...]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def to_coco(self) -> COCO:
        """As pycocotools' index."""
        listed = [one for image in self.images for one in self.objects[image["id"]]]
        return coco_of(self.images, listed, self.categories)

    def describe(self) -> list[str]:
        """What was found and what was left out, as sentences without full stops."""
        counts = Counter(one["category_id"] for objects in self.objects.values() for one in objects)
        ids = [number for number, _ in self.categories]
        few = [f"{name} ({counts[number]})" for number, name in self.categories if counts[number] < 2]
        lines = [
            f"{len(self.images):,} images, {sum(counts.values()):,} objects in {len(ids)} categories, "
            f"ids {ids[0]} to {ids[-1]}"
        ]
        lines += [f"categories with fewer than two objects: {first_few(few)}"] if few else []
        return lines + _reasons(self.left_out)


def read_annotations(path: Path, folder: Path | None = None, training: bool = True) -> Annotations:
    """Read the annotations in a JSON file, for the images that exist.

    Objects are left out, and counted, if their box or mask has no area within the image, or if their image or category
    is unknown. For training, so are images without a file or without an object. For evaluation a missing file is an
    error, as leaving out images would change the benchmark. Crowds (``iscrowd``) are kept: evaluation ignores
    detections in them.

    Args:
        path: of the JSON file.
        folder: of the images; None if there are no files to look for.
        training: True for training, False for evaluation.

    Raises:
        FileNotFoundError: if the file or, for evaluation, an image does not exist.
        ValueError: if the file does not hold such annotations, or nothing in it is usable.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no annotation file {path}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    return checked(content, str(path), folder, training)


def checked(content: Any, name: str, folder: Path | None = None, training: bool = True) -> Annotations:
    """Like ``read_annotations``, for the content of a file called ``name``."""
    images, annotations, names = _parts(content, name)
    left_out: dict[str, list[str]] = {}
    objects: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    for place, one in enumerate(annotations):
        why = _unusable(one, images, names)
        if why is not None:
            number = one.get("id", f"number {place}") if isinstance(one, dict) else f"number {place}"
            left_out.setdefault(f"objects {why}", []).append(f"annotation {number}")
        else:
            # pycocotools takes a match with id 0 for no match.
            kept = {"iscrowd": 0, **one, "id": place + 1}
            if "area" not in kept:
                image = images[one["image_id"]]
                kept["area"] = float(rle.area(rle_of(one["segmentation"], image["height"], image["width"])))
            objects[one["image_id"]].append(kept)
    missing = [i for i in images.values() if folder is not None and not (folder / i["file_name"]).is_file()]
    if len(missing) == len(images) or (missing and not training):
        what = f"{len(missing):,} of {len(images):,} images of {name} are not in {folder}"
        raise FileNotFoundError(f"{what}: {first_few([i['file_name'] for i in missing])}")
    if missing:
        left_out[f"images that are not in {folder}"] = [i["file_name"] for i in missing]
    absent = {i["id"] for i in missing}
    empty = {number for number, found in objects.items() if all(one["iscrowd"] for one in found)} - absent
    if training and empty:
        left_out["images without an object"] = [images[number]["file_name"] for number in sorted(empty)]
        absent |= empty
    chosen = [images[number] for number in sorted(images) if number not in absent]
    if not chosen or not any(not one["iscrowd"] for found in objects.values() for one in found):
        raise ValueError(f"{name}: nothing is usable; {'; '.join(_reasons(left_out))}")
    return Annotations(chosen, {i["id"]: objects[i["id"]] for i in chosen}, tuple(sorted(names.items())), left_out)


def _parts(content: Any, name: str) -> tuple[dict[int, dict[str, Any]], list[Any], dict[int, str]]:
    """Images by id, annotations, and category names by id; raises ValueError."""
    parts = [
        content.get(part) if isinstance(content, dict) else None for part in ("images", "annotations", "categories")
    ]
    if not all(isinstance(part, list) for part in parts):
        raise ValueError(f"{name} must hold COCO's lists images, annotations and categories")
    images, annotations, categories = (part or [] for part in parts)
    try:
        by_id = {int(i["id"]): {**i, "height": int(i["height"]), "width": int(i["width"])} for i in images}
        names = {int(category["id"]): str(category["name"]) for category in categories}
        without = [i for i in images if not isinstance(i["file_name"], str)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: images need id, file_name, height and width; categories need id and name: {error!r}"
        ) from error
    if without or len(by_id) < len(images) or len(names) < len(categories) or not by_id or not names:
        raise ValueError(
            f"{name} must list images and categories, each with a unique id, and images with a file name; "
            f"got {len(images)} images with {len(by_id)} ids and {len(categories)} categories with {len(names)}"
        )
    return by_id, annotations, names


def _unusable(one: Any, images: Mapping[int, dict[str, Any]], names: Mapping[int, str]) -> str | None:
    """Why an annotation is unusable, as a phrase; None if it is usable."""
    if not isinstance(one, dict) or one.get("image_id") not in images:
        return "of unlisted images"
    if one.get("category_id") not in names:
        return "of unlisted categories"
    image, box = images[one["image_id"]], one.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        return "without a box of four numbers"
    left, top, right, bottom = within(box, image)
    if right <= left or bottom <= top:
        return "with a box that has no area in the image"
    try:
        mask = rle_of(one["segmentation"], image["height"], image["width"])
        if isinstance(one["segmentation"], dict):
            rle.decode(mask)  # checks the run lengths, which area() does not
        there = rle.area(mask) > 0
    except Exception:  # pycocotools raises all kinds of errors
        there = False
    return None if there else "without a mask that has an area in the image"


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def within(box: list[float], image: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """COCO's box (left, top, width, height) as corners (left, top, right, bottom), clipped to the image."""
    left, top, width, height = box
    right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
    return max(left, 0.0), max(top, 0.0), right, bottom


def rle_of(segmentation: Any, height: int, width: int) -> Any:
    """Convert polygons, or run lengths of either kind, to pycocotools' compressed run lengths.

    Raises ValueError if their size differs from the image's, or a polygon has half a corner.
    """
    if isinstance(segmentation, list):
        if any(len(polygon) % 2 for polygon in segmentation):
            raise ValueError("a polygon must have two numbers for each corner")
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"the mask's size is {segmentation['size']}, the image's {[height, width]}")
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != height * width:
            raise ValueError(f"the mask has {sum(segmentation['counts'])} pixels, the image {height * width}")
        return rle.frPyObjects(segmentation, height, width)
    return segmentation


def mask_of(segmentation: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The mask ``(height, width)``, 1 on the object."""
    mask: npt.NDArray[np.uint8] = rle.decode(rle_of(segmentation, height, width))
    return mask


def coco_of(images: list[Any], annotations: list[Any], categories: tuple[tuple[int, str], ...]) -> COCO:
    """pycocotools' index of these lists, created without its printed output."""
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _reasons(left_out: Mapping[str, list[str]]) -> list[str]:
    return [f"left out: {reason}: {len(names):,} ({first_few(names)})" for reason, names in left_out.items()]
