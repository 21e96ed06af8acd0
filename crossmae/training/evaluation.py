"""Evaluation during training: probes of the features and pictures of reconstructions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import BatchSampler, DataLoader, Subset

from crossmae.figures import draw_mixing_weights, draw_reconstructions
from crossmae.masking import draw_masking, noise_length
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae.reconstruction import reconstruction_columns
from crossmae.training.data.batches import Batch, loader
from crossmae.training.data.dataset import ImageDataset, Images, Sample
from crossmae.training.data.statistics import evenly_spaced
from crossmae.training.plan import PretrainingPlan
from crossmae.training.probe import LabelledFeatures, accuracies, encoder_features, pixel_features

PICTURES = 6
BATCH = 128


@dataclass(frozen=True)
class EvaluationSets:
    """Images to fit a classifier on, and images to test it on."""

    training: "Subset[Sample]"
    test: "Subset[Sample]"


def labelled(dataset: ImageDataset, limit: int) -> EvaluationSets | None:
    """At most ``limit`` images for each part, evenly spaced among the labelled ones; None if there are none.

    If no labelled images are held out, both parts come from the training images; pretraining has then seen the test
    part, though not its labels.
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
    return Subset(images, [i for i in evenly_spaced(len(images), limit) if images.source.label(i) >= 0])


class Evaluation:
    """The fixed images that a run is evaluated on: labelled ones for probes, and a few for pictures.

    ``unreadable`` holds names and reasons of images replaced by others so far.
    """

    def __init__(self, images: ImageDataset, plan: PretrainingPlan, probe_images: int) -> None:
        self._plan = plan
        self.unreadable: dict[str, None] = {}
        self._sets = labelled(images, probe_images)
        self._shown = images.images if images.evaluation is None else images.evaluation

    @property
    def has_labels(self) -> bool:
        """Whether there are labels to probe with."""
        return self._sets is not None

    def probe(self, model: MaskedAutoencoder) -> dict[str, float]:
        """Accuracies of kNN and of a linear probe on the encoder's frozen features."""
        assert self._sets is not None
        return accuracies(self._features(model, self._sets.training), self._features(model, self._sets.test))

    def _features(self, model: MaskedAutoencoder, images: "Subset[Sample]") -> LabelledFeatures:
        return encoder_features(model, self._batches(images))

    def _batches(self, images: "Subset[Sample]") -> Iterator[Batch]:
        for batch in evaluation_loader(images, BATCH, self._plan.recipe.data.workers):
            self.unreadable.update(dict.fromkeys(batch.unreadable))
            yield batch

    @torch.no_grad()
    def draw(self, model: MaskedAutoencoder, step: int, folder: Path) -> list[Path]:
        """Draw reconstructions after every decoder block, and the mixing weights; returns the files.

        All masked patches are decoded, whatever the run predicts, as queries are independent.
        """
        config, count = self._plan.config, min(PICTURES, len(self._shown))
        raw = torch.stack([self._shown[i * len(self._shown) // count].image for i in range(count)])
        parameter = next(model.parameters())
        images = model.normalized(raw.to(parameter.device)).to(parameter.dtype)
        mask_ratio, _ = self._plan.ratios(step - 1)
        shape = self._plan.recipe.masking
        noise = torch.rand(count, noise_length(shape, config.patches), generator=torch.Generator().manual_seed(0))
        masking = draw_masking(shape, config.grid, mask_ratio, mask_ratio, noise.to(parameter.device))
        training = model.training
        columns = reconstruction_columns(model.eval(), images, model(images, masking=masking), blocks=True)
        model.train(training)
        folder.mkdir(exist_ok=True)
        files = [folder / f"reconstructions-{step:08d}.png"]
        draw_reconstructions(columns, files[0])
        if config.feature_maps is not None:
            files.append(folder / f"mixing-{step:08d}.png")
            draw_mixing_weights(model.state_dict()["decoder.mixing.weight"], config.feature_maps, files[1])
        return files


def baseline_accuracies(
    images: ImageDataset, config: Config, seed: int, probe_images: int = 5000
) -> dict[str, dict[str, float]]:
    """Accuracies of raw pixels and of an untrained encoder, as a baseline for a run with that seed.

    Raises ValueError if the images have no labels.
    """
    sets = labelled(images, probe_images)
    if sets is None:
        raise ValueError("the images have no labels to judge features by")
    torch.manual_seed(seed)
    untrained = MaskedAutoencoder(config)
    parts = (sets.training, sets.test)
    return {
        "raw pixels": accuracies(*(pixel_features(evaluation_loader(part, BATCH, 0)) for part in parts)),
        "untrained encoder": accuracies(
            *(encoder_features(untrained, evaluation_loader(part, BATCH, 0)) for part in parts)
        ),
    }
