"""Evaluate a detector on held-out images: detections, metrics and pictures."""

from pathlib import Path
from typing import Any

import torch.distributed
from lightning_fabric import Fabric
from tqdm import tqdm

from crossmae.detection.annotations import Annotations
from crossmae.detection.dataset import ObjectImages, ObjectSample
from crossmae.detection.detector import Detector
from crossmae.detection.drawing import draw_detections
from crossmae.detection.scoring import average_precision, detections
from crossmae.training.data.values import UnreadableImage

SHOWN = 6  # images in a picture


class Evaluation:
    """Images and their ground truth. ``unreadable`` names unreadable images, which have no detections."""

    def __init__(self, annotations: Annotations, images: ObjectImages) -> None:
        self.annotations, self._images = annotations, images
        self.unreadable: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._images)

    def detections(self, detector: Detector, fabric: Fabric) -> list[Any]:
        """Detections in all images, in COCO's format; every device calls, processes its part and gets all of them."""
        found: list[Any] = []
        places = range(fabric.global_rank, len(self._images), fabric.world_size)
        for index in tqdm(places, "evaluation", leave=False, disable=not fabric.is_global_zero):
            if (sample := self._read(index)) is not None:
                [prediction] = detector.detect([sample.image.to(fabric.device)])
                found += detections(sample.id, prediction, detector.head.categories)
        if fabric.world_size == 1:
            return found
        everywhere: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(everywhere, (found, self.unreadable))
        self.unreadable = {name: None for _, names in everywhere for name in names}
        return [one for part, _ in everywhere for one in part]

    def score(self, found: list[Any]) -> dict[str, float]:
        """COCO's metrics of detections, see ``scoring.average_precision``."""
        return average_precision(self.annotations, found)

    def draw(self, detector: Detector, path: Path) -> None:
        """Draw some images, their ground truth and the detections."""
        step = max(1, len(self._images) // SHOWN)
        read = [self._read(index) for index in range(0, len(self._images), step)]
        samples = [sample for sample in read if sample is not None][:SHOWN]
        if not samples:
            return
        device = next(detector.parameters()).device
        predictions = [detector.detect([sample.image.to(device)])[0] for sample in samples]
        columns = {"truth": [sample.target for sample in samples], "found": predictions}
        draw_detections([sample.image for sample in samples], columns, detector.head.categories, path)

    def _read(self, index: int) -> ObjectSample | None:
        try:
            return self._images[index]
        except UnreadableImage as error:
            self.unreadable[str(error)] = None
            return None
