"""Check labels before work starts."""

from dataclasses import dataclass

import numpy as np

from crossmae.checkpoint.messages import first_few
from crossmae.training.data.dataset import ImageDataset


@dataclass(frozen=True)
class Classes:
    """Names of the classes, by label, and a note on anything odd about their images."""

    names: tuple[str, ...]
    remark: str = ""


def classes_of(images: ImageDataset) -> Classes:
    """The classes of the training images, which must include those of the held-out images.

    Raises:
        ValueError: listing every problem: images without a label, classes without an image, no held-out images.
    """
    source = images.images.source
    if not source.labelled:
        raise ValueError(
            "the images have no labels: put each class in a subfolder, or a .cls beside each image of a shard"
        )
    labels = source.all_labels()
    if labels.max() >= max(len(labels), len(source.classes or ())):
        raise ValueError(f"labels must count classes from 0, got {labels.max()} among {len(labels):,} images")
    count = max(int(labels.max()) + 1, len(source.classes or ()))
    names = tuple(source.classes or map(str, range(count)))
    numbers = np.bincount(labels[labels >= 0], minlength=count)
    wrong = []
    if missing := int((labels < 0).sum()):
        wrong.append(f"{missing:,} of {len(labels):,} images have no label")
    if empty := [names[label] for label in np.flatnonzero(numbers == 0)]:
        wrong.append(f"labels skip {_listed(empty)}: {len(empty)} of {count} classes have no image")
    if count < 2:
        wrong.append("there is only one class")
    wrong += _wrong_of_held_out(images, count)
    if wrong:
        raise ValueError("labels: " + "; ".join(wrong))
    single = [names[label] for label in np.flatnonzero(numbers == 1)]
    return Classes(names, f"{len(single)} with only one image: {_listed(single)}" if single else "")


def _wrong_of_held_out(images: ImageDataset, count: int) -> list[str]:
    held_out = images.evaluation
    if held_out is None or not held_out.source.labelled:
        return ["there are no labelled held-out images to evaluate on; set data.evaluation"]
    labels = held_out.source.all_labels()
    wrong = []
    if missing := int((labels < 0).sum()):
        wrong.append(f"{missing:,} of {len(labels):,} held-out images have no label")
    if unknown := sorted({str(label) for label in labels[labels >= count].tolist()}):
        wrong.append(f"held-out images have labels that the training images lack: {_listed(unknown)}")
    return wrong


def _listed(names: list[str]) -> str:
    return first_few(names)
