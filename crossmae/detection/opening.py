"""Open the annotations and images that a run's settings name."""

from pathlib import Path
from typing import Literal

from crossmae.checkpoint.messages import first_few
from crossmae.detection.annotations import Annotations, read_annotations
from crossmae.detection.dataset import ImageFolder, ObjectImages
from crossmae.detection.evaluation import Evaluation
from crossmae.detection.recipe import SHAPES, DetectionData
from crossmae.detection.shapes import shapes

TRAINING_SHAPES, EVALUATION_SHAPES = 512, 128


def open_images(
    data: DetectionData, part: Literal["train", "evaluation"], channels: int
) -> tuple[Annotations, ObjectImages]:
    """The annotations for training or evaluation, and their images with this number of channels.

    Raises:
        FileNotFoundError, ValueError: see ``read_annotations``.
    """
    named, folder = getattr(data, part), getattr(data, f"{part}_images")
    training = part == "train"
    if named is None:
        raise ValueError(f"data.{part} must name a JSON file of annotations in COCO's format, or {SHAPES!r}")
    if named == SHAPES:
        annotations, read = shapes("train", TRAINING_SHAPES) if training else shapes("val", EVALUATION_SHAPES)
        if channels != 3:
            raise ValueError(f"shapes have 3 channels, but the encoder takes {channels}")
        return annotations, ObjectImages(annotations, read)
    path = Path(named)
    images = image_folder(path) if folder is None else Path(folder)
    annotations = read_annotations(path, images, training)
    return annotations, ObjectImages(annotations, ImageFolder(images, channels))


def image_folder(annotations: Path) -> Path:
    """The default image folder of an annotation file: COCO's ``<part>`` for ``annotations/instances_<part>.json``,
    else the file's own folder."""
    as_in_coco = annotations.parent.parent / annotations.stem.removeprefix("instances_")
    return as_in_coco if annotations.parent.name == "annotations" and as_in_coco.is_dir() else annotations.parent


def open_evaluation(data: DetectionData, channels: int, categories: tuple[tuple[int, str], ...]) -> Evaluation:
    """The evaluation of a detector of these categories; raises ValueError if the ground truth has others."""
    annotations, images = open_images(data, "evaluation", channels)
    unknown = [f"{name} ({number})" for number, name in annotations.categories if (number, name) not in categories]
    if unknown:
        known = first_few([f"{name} ({number})" for number, name in categories])
        raise ValueError(
            f"data.evaluation has categories that the detector lacks: {first_few(unknown)}; it has {known}"
        )
    return Evaluation(annotations, images)
