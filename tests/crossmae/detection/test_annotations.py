"""What is wrong with annotations is refused or left out, with names and counts, before anything starts."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from crossmae.detection.annotations import checked, mask_of, read_annotations
from crossmae.detection.dataset import ImageFolder, ObjectImages, TrainingImages
from crossmae.detection.opening import image_folder
from crossmae.training.data.values import UnreadableImage

TRIANGLE = [[2, 2, 10, 2, 2, 10]]
GOOD = {"image_id": 5, "category_id": 9, "bbox": [2, 2, 8, 8], "segmentation": TRIANGLE}
CONTENT = {
    "images": [
        {"id": 9, "file_name": "b.png", "height": 12, "width": 16},
        {"id": 5, "file_name": "a.png", "height": 12, "width": 16},
        {"id": 7, "file_name": "empty.png", "height": 12, "width": 16},
    ],
    "annotations": [
        {**GOOD, "id": 0},
        {**GOOD, "id": 1, "image_id": 9, "category_id": 2, "iscrowd": 0, "area": 5.0},
    ],
    "categories": [{"id": 9, "name": "nine"}, {"id": 2, "name": "two"}],
}
UNUSABLE = {
    "of unlisted images": {"image_id": 4},
    "of unlisted categories": {"category_id": 3},
    "without a box of four numbers": {"bbox": [1, 2, 3]},
    "with a box that has no area in the image": {"bbox": [16, 2, 8, 8]},
    "without a mask that has an area in the image": {"segmentation": []},
}
MORE_OF_THESE = [
    ("without a box of four numbers", {"bbox": None}),
    ("without a box of four numbers", {"bbox": [1, 2, float("nan"), 3]}),
    ("with a box that has no area in the image", {"bbox": [2, 2, 0, 8]}),
    ("with a box that has no area in the image", {"bbox": [2, 2, 3, -8]}),
    ("without a mask that has an area in the image", {"segmentation": None}),
    ("without a mask that has an area in the image", {"segmentation": [[1, 1]]}),
    ("without a mask that has an area in the image", {"segmentation": [[40, 40, 50, 40, 50, 50]]}),
    ("without a mask that has an area in the image", {"segmentation": {"size": [16, 12], "counts": [0, 192]}}),
    ("without a mask that has an area in the image", {"segmentation": {"size": [12, 16], "counts": [60, 90]}}),
    ("without a mask that has an area in the image", {"segmentation": {"size": [12, 16], "counts": "zz~!!"}}),
    ("without a mask that has an area in the image", {"segmentation": [[1, 1, 9, 9, 5, 9, 3]]}),
]


def with_(**changes):
    return {**copy.deepcopy(CONTENT), **changes}


def test_ids_may_skip_numbers_and_come_in_any_order():
    found = checked(with_(), "a.json")
    assert found.categories == ((2, "two"), (9, "nine"))
    assert [image["id"] for image in found.images] == [5, 9]
    assert found.left_out == {"images without an object": ["empty.png"]}
    assert found.describe() == [
        "2 images, 2 objects in 2 categories, ids 2 to 9",
        "categories with fewer than two objects: two (1), nine (1)",
        "left out: images without an object: 1 (empty.png)",
    ]
    [only] = found.objects[5]
    assert only["id"] > 0  # 0 is no number to pycocotools
    assert only["area"] == mask_of(TRIANGLE, 12, 16).sum()  # it was not given
    assert only["iscrowd"] == 0
    assert found.objects[9][0]["area"] == 5.0


@pytest.mark.parametrize(("reason", "change"), [*UNUSABLE.items(), *MORE_OF_THESE])
@pytest.mark.parametrize("training", [True, False])
def test_an_object_that_cannot_be_used_is_left_out_and_counted(reason, change, training):
    bad = [{**GOOD, "id": 40, **change}, {**GOOD, "id": 41, **change}]
    found = checked(with_(annotations=[*CONTENT["annotations"], *bad]), "a.json", training=training)
    assert found.left_out[f"objects {reason}"] == ["annotation 40", "annotation 41"]
    assert sum(map(len, found.objects.values())) == 2
    assert f"left out: objects {reason}: 2 (annotation 40, annotation 41)" in found.describe()


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        with_(images=[]),
        with_(categories=[]),
        with_(images={}),
        with_(images=[{"id": 1}]),
        with_(images=[CONTENT["images"][0]] * 2),
        with_(categories=[CONTENT["categories"][0]] * 2),
        with_(annotations=[]),
        with_(annotations=[3]),
        with_(annotations=[{**GOOD, "iscrowd": 1}]),
    ],
)
def test_what_is_no_annotations_is_refused_in_a_line(content):
    for training in (True, False):
        with pytest.raises(ValueError, match=r"^a\.json.*(must|need|nothing is usable)") as refused:
            checked(content, "a.json", training=training)
        assert "\n" not in str(refused.value)


@pytest.fixture
def folder(tmp_path):
    """COCO's layout."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "part").mkdir()
    (tmp_path / "annotations" / "instances_part.json").write_text(json.dumps(CONTENT))
    for name in ("a", "b", "empty"):
        Image.new("RGB", (16, 12), (10, 20, 30)).save(tmp_path / "part" / f"{name}.png")
    return tmp_path


def test_images_are_found_where_coco_has_them_or_beside_the_file(folder):
    written = folder / "annotations" / "instances_part.json"
    assert image_folder(written) == folder / "part"
    assert image_folder(folder / "annotations" / "other.json") == folder / "annotations"
    assert image_folder(folder / "train" / "_annotations.coco.json") == folder / "train"


def test_missing_images_are_left_out_of_training_and_refused_for_evaluation(folder):
    written, images = folder / "annotations" / "instances_part.json", folder / "part"
    (images / "b.png").unlink()
    found = read_annotations(written, images)
    assert [image["file_name"] for image in found.images] == ["a.png"]
    assert f"left out: images that are not in {images}: 1 (b.png)" in found.describe()
    with pytest.raises(FileNotFoundError, match=rf"1 of 3 images of .* are not in {images}: b\.png"):
        read_annotations(written, images, training=False)
    with pytest.raises(FileNotFoundError, match=r"3 of 3 images of .*: b\.png, a\.png, empty\.png"):
        read_annotations(written, folder)
    with pytest.raises(FileNotFoundError, match="there is no annotation file"):
        read_annotations(folder / "no.json")
    (folder / "no.json").write_text("{")
    with pytest.raises(ValueError, match=r"no\.json is not a JSON file"):
        read_annotations(folder / "no.json")


def test_an_image_of_another_size_or_that_is_none_is_replaced_and_named(folder):
    images = ObjectImages(checked(with_(), "a.json"), ImageFolder(folder / "part", 3))
    assert images[0].image.unique().tolist() == [10, 20, 30]
    Image.new("RGB", (12, 16)).save(folder / "part" / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png has 16 x 12 pixels, but its annotations are for 12 x 16"):
        images[0]
    (folder / "part" / "b.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"b\.png cannot be read"):
        images[1]
    training = TrainingImages(images, 16, (1.0, 1.0), flip=False, seed=0)
    with pytest.raises(UnreadableImage, match="2 images in a row"):
        training[0, 0]
    Image.new("RGB", (16, 12)).save(folder / "part" / "b.png")
    sample = training[0, 0]
    assert sample.id == 9
    assert len(sample.unreadable) == 1
    with pytest.raises(UnreadableImage, match=r"a\.png"):
        TrainingImages(images, 16, (1.0, 1.0), flip=False, seed=0, strict=True)[0, 0]


def test_objects_are_corners_labels_from_one_and_masks_of_every_kind():
    square = np.zeros((12, 16), np.uint8, order="F")
    square[3:7, 1:4] = 1
    runs = {"size": [12, 16], "counts": [15, 4, 8, 4, 8, 4, 149]}
    packed = rle.encode(square)
    kinds = [[[1, 3, 4, 3, 4, 7, 1, 7]], runs, {**packed, "counts": packed["counts"].decode()}]
    boxed = {"image_id": 5, "category_id": 9, "bbox": [1, 3, 3, 4]}
    crowd = {**boxed, "segmentation": runs, "iscrowd": 1}
    annotations = checked(with_(annotations=[*({**boxed, "segmentation": kind} for kind in kinds), crowd]), "a.json")
    sample = ObjectImages(annotations, lambda name: torch.zeros(3, 12, 16))[0]
    assert sample.target["boxes"].tolist() == [[1, 3, 4, 7]] * 3
    assert sample.target["labels"].tolist() == [2, 2, 2]
    for mask in sample.target["masks"].numpy():
        assert np.array_equal(mask, square)
