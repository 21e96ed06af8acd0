"""Images with objects, plain for evaluation or augmented for training, and batches of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossmae.detection.annotations import Annotations, mask_of, within
from crossmae.detection.jitter import Target, jitter
from crossmae.training.data import randomness
from crossmae.training.data.dataset import first_readable
from crossmae.training.data.decoding import decode
from crossmae.training.data.source import PackedNames
from crossmae.training.data.values import UnreadableImage


@dataclass(frozen=True)
class ObjectSample:
    """One image ``(C, H, W)``, uint8, its objects, its id in the annotations, and names of unreadable images."""

    image: Tensor
    target: Target
    id: int
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObjectBatch:
    """Samples of different sizes."""

    images: list[Tensor]
    targets: list[Target]
    ids: list[int]
    unreadable: tuple[str, ...]

    def to(self, device: torch.device | str) -> "ObjectBatch":
        """Move to a device, asynchronously from pinned memory."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ObjectBatch":
        """Move to page-locked memory; PyTorch's loader calls this."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> "ObjectBatch":
        targets = [{name: move(tensor) for name, tensor in target.items()} for target in self.targets]
        return ObjectBatch([move(image) for image in self.images], targets, self.ids, self.unreadable)


def collate(samples: Sequence[ObjectSample]) -> ObjectBatch:
    """Collect samples into lists."""
    return ObjectBatch(
        [sample.image for sample in samples],
        [sample.target for sample in samples],
        [sample.id for sample in samples],
        tuple(name for sample in samples for name in sample.unreadable),
    )


class ImageFolder:
    """Images in a folder, by name."""

    def __init__(self, folder: Path, channels: int) -> None:
        self.folder, self.channels = folder, channels

    def __call__(self, name: str) -> Tensor:
        """``(channels, H, W)``, uint8; raises UnreadableImage."""
        return decode(self.folder / name, name, self.channels, torch.uint8)


class ObjectImages(Dataset[ObjectSample]):
    """Images and their objects by index, without randomness. Crowds are not used as objects.

    Raises UnreadableImage if a file is not an image, or its size differs from the one in the annotations.
    """

    def __init__(self, annotations: Annotations, read: Callable[[str], Tensor]) -> None:
        self.categories, self.read = annotations.categories, read
        # One buffer, which worker processes share without copying.
        self._records = PackedNames(
            json.dumps({**image, "objects": [one for one in annotations.objects[image["id"]] if not one["iscrowd"]]})
            for image in annotations.images
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> ObjectSample:
        record = json.loads(self._records[index])
        size = (record["height"], record["width"])
        image = self.read(record["file_name"])
        if tuple(image.shape[1:]) != size:
            found = " x ".join(map(str, image.shape[1:]))
            raise UnreadableImage(
                f"{record['file_name']} has {found} pixels, but its annotations are for {size[0]} x {size[1]}"
            )
        objects = record["objects"]
        label = {number: i for i, (number, _) in enumerate(self.categories, start=1)}
        masks = [mask_of(one["segmentation"], *size) for one in objects]
        return ObjectSample(
            image,
            {
                "boxes": torch.tensor([within(one["bbox"], record) for one in objects], dtype=torch.float32).view(
                    -1, 4
                ),
                "labels": torch.tensor([label[one["category_id"]] for one in objects], dtype=torch.int64),
                "masks": torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8)),
            },
            record["id"],
        )


@dataclass(frozen=True)
class TrainingImages(Dataset[ObjectSample]):
    """Training images by (epoch, index); the jitter is a function of seed, epoch and index alone.

    An unreadable image is replaced by the next readable one. For the other arguments see ``jitter.jitter``.
    """

    images: ObjectImages
    side: int
    scale: tuple[float, float]
    flip: bool
    seed: int
    strict: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: tuple[int, int]) -> ObjectSample:
        epoch, index = place
        sample, unreadable = first_readable(index, self.images.__getitem__, len(self), self.strict)
        rng = randomness.of_sample(self.seed, epoch, index)
        image, target = jitter(sample.image, sample.target, self.side, self.scale, self.flip, rng)
        return ObjectSample(image, target, sample.id, unreadable)
