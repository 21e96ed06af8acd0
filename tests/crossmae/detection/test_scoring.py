"""Average precision against cases worked out by hand."""

import math

import numpy as np
import pytest
import torch

from crossmae.detection.annotations import checked
from crossmae.detection.scoring import average_precision, detections, headline

SIDE = 200
EXACTLY_ONE = pytest.approx(1.0, rel=1e-12)  # pycocotools adds the smallest of numbers to what it divides by


def box_mask(box):
    left, top, right, bottom = box
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[top:bottom, left:right] = 1
    return mask


def truth(*boxes):
    """One image for each list of boxes, of category 4 and then 11 and 4 in turn."""
    annotations = [
        {
            "image_id": image,
            "category_id": (4, 11)[place % 2],
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        }
        for image, of_image in enumerate(boxes)
        for place, (left, top, right, bottom) in enumerate(of_image)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}", "height": SIDE, "width": SIDE} for i in range(len(boxes))],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "four"}, {"id": 11, "name": "eleven"}],
    }
    return checked(content, "truth", training=False)


def found(annotations, *boxes, scores=None):
    """Detections in COCO's format of the same form as ``truth``."""
    return [
        one
        for image, of_image in enumerate(boxes)
        for one in detections(
            image,
            {
                "boxes": torch.tensor(of_image, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor([1 + place % 2 for place in range(len(of_image))], dtype=torch.int64),
                "scores": torch.tensor(scores[image] if scores else [0.9] * len(of_image)),
                "masks": torch.from_numpy(np.stack([box_mask(box) for box in of_image])[:, None])
                if of_image
                else torch.zeros(0, 1, SIDE, SIDE),
            },
            annotations.categories,
        )
    ]


ONE, OTHER = (20, 30, 120, 130), (130, 140, 190, 180)


def test_perfect_detections_have_an_average_precision_of_one():
    annotations = truth([ONE, OTHER], [OTHER])
    metrics = average_precision(annotations, found(annotations, [ONE, OTHER], [OTHER]))
    for kind in ("box", "mask"):
        for name in ("AP", "AP50", "AP75", "AR100", "AP of four", "AP of eleven"):
            assert metrics[f"{kind} {name}"] == EXACTLY_ONE, name
        assert math.isnan(metrics[f"{kind} APs"])  # no object is that small
        assert metrics[f"{kind} APm"] == EXACTLY_ONE  # 60 x 40
        assert metrics[f"{kind} APl"] == EXACTLY_ONE  # 100 x 100
    assert "box APs" not in headline(metrics)
    assert set(headline(metrics)) == {f"{k} {n}" for k in ("box", "mask") for n in ("AP", "AP50", "AP75", "APm", "APl")}


@pytest.mark.parametrize(("shift", "thresholds"), [(10, 7), (20, 4), (40, 0)])
def test_shifted_boxes_count_at_the_thresholds_that_they_overlap_by(shift, thresholds):
    """100 pixels wide, shifted by 10: 90 / 110 = .82, which passes .50, .55, ... .80; by 20: .67; by 40: .43."""
    annotations = truth([ONE])
    left, top, right, bottom = ONE
    metrics = average_precision(annotations, found(annotations, [(left + shift, top, right + shift, bottom)]))
    for kind in ("box", "mask"):
        assert metrics[f"{kind} AP"] == pytest.approx(thresholds / 10)
        assert metrics[f"{kind} AP50"] == (EXACTLY_ONE if thresholds else 0.0)
        assert metrics[f"{kind} AP75"] == (EXACTLY_ONE if thresholds > 5 else 0.0)


def test_a_false_detection_with_a_higher_score_halves_the_precision():
    annotations = truth([ONE], [])
    wrong_first = found(annotations, [ONE], [ONE], scores=[[0.5], [0.9]])
    assert average_precision(annotations, wrong_first)["box AP"] == pytest.approx(0.5)
    wrong_last = found(annotations, [ONE], [ONE], scores=[[0.9], [0.5]])
    assert average_precision(annotations, wrong_last)["box AP"] == EXACTLY_ONE


def test_half_of_the_objects_found_is_half_of_the_recall():
    annotations = truth([ONE], [OTHER])
    metrics = average_precision(annotations, found(annotations, [ONE], []))
    assert metrics["box AP"] == pytest.approx(51 / 101)  # of 101 levels of recall, 0 to .50 are reached
    assert metrics["box AR100"] == 0.5


def test_nothing_found_is_zero_and_a_category_without_objects_does_not_count():
    annotations = truth([ONE])
    metrics = average_precision(annotations, [])
    assert metrics["box AP"] == metrics["mask AP"] == metrics["box AP of four"] == 0.0
    assert math.isnan(metrics["box AP of eleven"])


def test_a_crowd_is_neither_to_be_found_nor_wrong_to_find():
    annotations = truth([ONE, OTHER])
    annotations.objects[0][1]["iscrowd"] = 1
    metrics = average_precision(annotations, found(annotations, [ONE, OTHER]))
    assert metrics["box AP of four"] == EXACTLY_ONE
    assert math.isnan(metrics["box AP of eleven"])
