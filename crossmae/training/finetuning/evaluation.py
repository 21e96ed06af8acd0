"""Accuracy on held-out images, counted jointly by all devices."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import Dataset

from crossmae.training.data.batches import Batch, loader
from crossmae.training.data.dataset import Images, Sample
from crossmae.training.devices import over_devices

BATCH = 128


@dataclass(frozen=True)
class Found:
    """Counts of held-out images: by label and prediction, ``(classes, classes)``, and with their label in the top 5."""

    confusion: Tensor
    in_top5: int

    @property
    def accuracies(self) -> dict[str, float]:
        """``top1`` and ``top5``."""
        images = int(self.confusion.sum())
        return {"top1": int(self.confusion.trace()) / images, "top5": self.in_top5 / images}


class Judged(Dataset[Sample]):
    """Held-out images; unreadable ones, and indices beyond the last, have no label."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __getitem__(self, place: int) -> Sample:
        sample = self._images[place % len(self._images)]
        return replace(sample, label=-1) if sample.unreadable or place >= len(self._images) else sample


class HeldOut:
    """Images to evaluate a classifier on.

    ``unreadable`` holds names and reasons of those that could not be read so far; they do not count.
    """

    def __init__(self, images: Images, classes: int, workers: int) -> None:
        self._images, self._classes, self._workers = images, classes, workers
        self.unreadable: dict[str, None] = {}

    @torch.no_grad()
    def evaluate(self, logits: Callable[[Tensor], Tensor], fabric: Fabric) -> Found:
        """Count the predictions of a model, images ``(B, C, H, W)`` -> logits ``(B, classes)``; every device must call.

        Each device evaluates its part of the images. All run the same number of batches, as the ranks of a sharded
        model wait for each other.

        Raises:
            ValueError: if none of the images could be read.
        """
        counts = torch.zeros(self._classes, self._classes, dtype=torch.int64, device=fabric.device)
        in_top5 = torch.zeros((), dtype=torch.int64, device=fabric.device)
        for batch in self._batches(fabric):
            labels = batch.labels
            scores = logits(batch.images)
            known = labels >= 0
            best = scores.topk(min(5, self._classes), dim=1).indices[known]
            labels = labels[known]
            counts += torch.bincount(labels * self._classes + best[:, 0], minlength=counts.numel()).view_as(counts)
            in_top5 += (best == labels[:, None]).any(dim=1).sum()
        counts, in_top5 = (over_devices(fabric, count, "sum") for count in (counts, in_top5))
        if not counts.any():
            raise ValueError(f"none of the {len(self._images):,} held-out images can be read")
        return Found(counts.cpu(), int(in_top5))

    def _batches(self, fabric: Fabric) -> Iterator[Batch]:
        rank, world = fabric.global_rank, fabric.world_size
        places = range(rank, -(-len(self._images) // world) * world, world)
        parts = [places[first : first + BATCH] for first in range(0, len(places), BATCH)]
        for batch in loader(Judged(self._images), parts, self._workers, fabric.device):
            self.unreadable.update(dict.fromkeys(batch.unreadable))
            yield batch.to(fabric.device)
