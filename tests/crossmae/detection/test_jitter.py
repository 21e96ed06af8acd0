"""Large-scale jitter keeps image, masks and boxes together."""

import numpy as np
import pytest
import torch

from crossmae.detection.dataset import ObjectImages, TrainingImages
from crossmae.detection.jitter import jitter
from crossmae.detection.shapes import shapes


def scene(boxes, height=40, width=60):
    """Rectangles of their own grey levels on black, and the target of them."""
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for place, (left, top, right, bottom) in enumerate(boxes):
        image[:, top:bottom, left:right] = 100 * (place + 1)
        masks[place, top:bottom, left:right] = 1
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.arange(1, len(boxes) + 1),
        "masks": masks,
    }


BOXES = [(4, 6, 20, 30), (34, 2, 56, 12)]


@pytest.mark.parametrize("flip", [False, True])
def test_at_its_own_scale_an_image_is_cut_and_mirrored_with_its_objects(flip):
    image, target = scene(BOXES)
    mirrored = 0
    for seed in range(40):
        out, objects = jitter(image, target, 30, (2.0, 2.0), flip, np.random.default_rng(seed))  # 60 x 30/60 x 2 = 60
        assert out.shape == (1, 30, 30)
        assert len(objects["boxes"]) == len(objects["labels"]) == len(objects["masks"])
        for box, label, mask in zip(
            objects["boxes"].tolist(), objects["labels"].tolist(), objects["masks"], strict=True
        ):
            assert torch.equal(out[0] == 100 * label, mask.bool())
            left, top, right, bottom = map(int, box)
            assert mask.sum() == (right - left) * (bottom - top) == mask[top:bottom, left:right].sum()
        shown = {level for level in out.unique().tolist() if level}
        assert shown == {100 * label for label in objects["labels"].tolist()}
        if len(objects["boxes"]) == 2:
            mirrored += bool(objects["boxes"][0, 0] > objects["boxes"][1, 0])
    assert mirrored == 0 if not flip else mirrored > 0


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_an_image_that_fits_is_resized_whole(scale):
    image, target = scene(BOXES)
    out, objects = jitter(image, target, 120, (scale, scale), False, np.random.default_rng(0))
    assert out.shape == (1, round(80 * scale), round(120 * scale))
    assert torch.equal(objects["boxes"], target["boxes"] * 2 * scale)  # of 60 x 40 pixels, 120 x 80 fit
    assert objects["masks"].shape[1:] == out.shape[1:]


def test_scales_are_uniform_over_their_range():
    image, target = scene(BOXES)
    sides = [
        jitter(image, target, 200, (0.1, 1.0), True, np.random.default_rng(seed))[0].shape[2] / 200
        for seed in range(300)
    ]
    assert 0.1 <= min(sides) < 0.13
    assert 0.97 < max(sides) <= 1.0
    # The mean of 300 numbers, uniform in [.1, 1], lies within 4 of its deviations of .55.
    assert abs(np.mean(sides) - 0.55) < 4 * 0.9 / (12 * 300) ** 0.5


def test_what_is_cut_has_the_box_of_what_is_left_and_what_is_outside_is_dropped():
    triangle = torch.ones(20, 20, dtype=torch.uint8).tril()  # 1 where column <= row
    masks = torch.zeros(2, 40, 40, dtype=torch.uint8)
    masks[0, 10:30, 10:30] = triangle
    masks[1, 0:2, 38:40] = 1
    target = {
        "boxes": torch.tensor([[10.0, 10, 30, 30], [38, 0, 40, 2]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
    }
    cut = 0
    for seed in range(60):
        _, objects = jitter(
            torch.zeros(1, 40, 40, dtype=torch.uint8), target, 20, (2.0, 2.0), False, np.random.default_rng(seed)
        )
        for box, mask in zip(objects["boxes"], objects["masks"], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [int(value) for value in seen]
            cut += int(mask.sum()) < 210
    assert cut > 10


def test_a_sample_is_a_function_of_seed_epoch_and_index():
    annotations, read = shapes("train", 4)
    images = ObjectImages(annotations, read)

    def drawn(seed, epoch, index):
        torch.manual_seed(epoch + 100)  # global generators play no part
        return TrainingImages(images, 64, (0.5, 1.5), True, seed)[epoch, index]

    first, again = drawn(0, 1, 2), drawn(0, 1, 2)
    assert torch.equal(first.image, again.image)
    assert all(torch.equal(first.target[name], again.target[name]) for name in first.target)
    others = [drawn(1, 1, 2), drawn(0, 2, 2)]
    assert all(other.image.shape != first.image.shape or not torch.equal(other.image, first.image) for other in others)


def test_generated_shapes_have_exact_boxes_and_masks():
    annotations, read = shapes("val", 30)
    assert annotations.categories == ((1, "disc"), (3, "square"), (7, "triangle"))
    images = ObjectImages(annotations, read)
    areas = {1: [], 2: [], 3: []}
    for sample in map(images.__getitem__, range(30)):
        masks = sample.target["masks"]
        assert masks.sum(0).max() <= 1  # what covers another takes its pixels
        for box, label, mask in zip(
            sample.target["boxes"].tolist(), sample.target["labels"].tolist(), masks, strict=True
        ):
            left, top, right, bottom = map(int, box)
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert [left, top] == [columns.min(), rows.min()]
            assert [right, bottom] == [columns.max() + 1, rows.max() + 1]
            areas[label].append(float(mask.sum()) / ((right - left) * (bottom - top)))
    assert np.median(areas[1]) == pytest.approx(np.pi / 4, abs=0.05)  # of its box a disc fills so much
    other = shapes("train", 30)[1]
    assert not torch.equal(other("0"), read("0"))
