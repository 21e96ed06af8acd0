"""Labelled images, as they are, for nearest neighbours and linear probes."""

from dataclasses import dataclass

import torch
from torch.utils.data import BatchSampler, DataLoader, Subset

from crossmae.training.data.batches import Batch, loader
from crossmae.training.data.dataset import ImageDataset, Images, Sample
from crossmae.training.data.statistics import spread


@dataclass(frozen=True)
class EvaluationSets:
    """Images to fit a classifier on, and others to ask it about."""

    training: "Subset[Sample]"
    test: "Subset[Sample]"


def labelled(dataset: ImageDataset, limit: int) -> EvaluationSets | None:
    """At most ``limit`` images for each part, evenly spread over the labelled ones; None if there are none.

    Where no labelled images are held out, both parts come from the training images: pretraining has seen the test part
    then, though not its labels.
    """
    training, held_out = dataset.images, dataset.evaluation
    if not training.source.labelled:
        return None
    if held_out is not None and held_out.source.labelled:
        sets = EvaluationSets(_labelled(training, limit), _labelled(held_out, limit))
    else:
        chosen = _labelled(training, 2 * limit).indices
        sets = EvaluationSets(Subset(training, chosen[::2]), Subset(training, chosen[1::2]))
    return sets if len(sets.training) and len(sets.test) else None


def evaluation_loader(
    subset: "Subset[Sample]", batch_size: int, workers: int, device: torch.device | str = "cpu"
) -> "DataLoader[Batch]":
    """All images of a part in order, in batches; the last may be smaller."""
    return loader(subset, BatchSampler(range(len(subset)), batch_size, drop_last=False), workers, device)


def _labelled(images: Images, limit: int) -> "Subset[Sample]":
    return Subset(images, [i for i in spread(len(images), limit) if images.source.label(i) >= 0])
