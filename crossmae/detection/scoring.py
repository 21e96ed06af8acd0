"""Average precision of boxes and masks, as pycocotools computes it."""

import contextlib
import io
import math
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from crossmae.detection.annotations import Annotations, coco_of

# The order of pycocotools' summary: AP averaged over IoU .50 to .95, at .50, at .75, and for objects with an area below
# 32^2 pixels, up to 96^2, and above; then average recall by detections per image, and for these sizes.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KINDS = {"box": "bbox", "mask": "segm"}


def detections(image_id: int, prediction: dict[str, Tensor], categories: tuple[tuple[int, str], ...]) -> list[Any]:
    """A detector's output for one image, in COCO's results format.

    Args:
        image_id: in the annotations.
        prediction: torchvision's: ``boxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) from 1 and ``masks`` (N, 1, H, W),
            probabilities.
        categories: for the labels.
    """
    masks = (prediction["masks"][:, 0] > 0.5).to(torch.uint8).cpu().numpy()
    corners = prediction["boxes"].tolist()
    found = []
    for (left, top, right, bottom), score, label, mask in zip(
        corners, prediction["scores"].tolist(), prediction["labels"].tolist(), masks, strict=True
    ):
        packed = rle.encode(np.asfortranarray(mask))
        found.append(
            {
                "image_id": image_id,
                "category_id": categories[label - 1][0],
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": {**packed, "counts": packed["counts"].decode("ascii")},
                "score": score,
            }
        )
    return found


def average_precision(annotations: Annotations, found: list[Any]) -> dict[str, float]:
    """COCO's metrics by name, such as "box AP" and "mask AP50", and "box AP of <category>"; NaN if undefined.

    Args:
        annotations: the ground truth.
        found: all detections, as ``detections`` returns them for each image.
    """
    return {name: value for kind in KINDS for name, value in _of_kind(kind, annotations, found).items()}


def headline(metrics: dict[str, float]) -> dict[str, float]:
    """The average precisions over all categories that are not NaN, for log and curves."""
    names = [f"{kind} {metric}" for kind in KINDS for metric in METRICS if metric.startswith("AP")]
    return {name: metrics[name] for name in names if not math.isnan(metrics[name])}


def _of_kind(kind: str, annotations: Annotations, found: list[Any]) -> dict[str, float]:
    results = [
        {
            **one,
            "id": number,
            "iscrowd": 0,
            # Objects are classed by size with the area of the box or of the mask.
            "area": one["bbox"][2] * one["bbox"][3] if kind == "box" else float(rle.area(one["segmentation"])),
        }
        for number, one in enumerate(found, start=1)
    ]
    evaluation = COCOeval(
        annotations.to_coco(), coco_of(annotations.images, results, annotations.categories), KINDS[kind]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (IoU thresholds, recalls, categories, object sizes, detections per image), -1 if there is no object
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    of_category = [
        values[values > -1].mean() if (values > -1).any() else -1.0 for values in precision.transpose(2, 0, 1)
    ]
    named = {f"{kind} {name}": value for name, value in zip(METRICS, evaluation.stats, strict=True)}
    named |= {
        f"{kind} AP of {name}": value for (_, name), value in zip(annotations.categories, of_category, strict=True)
    }
    return {name: float(value) if value >= 0 else math.nan for name, value in named.items()}
