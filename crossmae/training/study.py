"""Small studies of what encoders learn with one decoder or another: tiny models, tasks that need no download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmae.training.data.config import DataConfig
from crossmae.training.monitor import LOG, read_log
from crossmae.training.recipe import Precision, Recipe, RunOptions
from crossmae.training.run import pretrain

BATCH = 128
MASK_RATIO = 0.75
ALL_IMAGES = 100_000
TASKS: dict[str, dict[str, Any]] = {
    # Much of a scanned digit is blank, and a blank patch, normalised, is rounding noise.
    "digits": {"channels": 1, "normalize_targets": False},
    "photographs": {"channels": 3},
}


@dataclass(frozen=True)
class Variant:
    """A decoder, by what differs from the tiny CrossMAE."""

    name: str
    family: str = "crossmae"
    prediction_ratio: float = 0.25
    inter_block: bool = True
    self_attention: bool = False


def recipe_of(variant: Variant, task: str, seed: int, steps: int, precision: Precision = "float32") -> Recipe:
    """The run of one variant on one task: all have the same encoder and, with a seed, see the same batches."""
    options = dict(TASKS[task])
    if variant.family == "crossmae":
        options["decoder_self_attention"] = variant.self_attention
        if not variant.inter_block:
            options["feature_maps"] = None
    return Recipe(
        model=f"{variant.family}_vit_tiny_patch4",
        model_options=options,
        data=DataConfig(source=task, crop_scale=None, flip=False, workers=0),
        mask_ratio=MASK_RATIO,
        prediction_ratio=variant.prediction_ratio,
        steps=steps,
        batch_size=BATCH,
        learning_rate=2e-3,
        warmup=0.1,
        precision=precision,
        seed=seed,
    )


def pretrained(recipe: Recipe, folder: Path, probe_every: float | None = None) -> list[dict[str, Any]]:
    """The log of a run to its end, resumed where it stopped, or left alone if it is done.

    Args:
        recipe: the run.
        folder: where it lies.
        probe_every: epochs between evaluations; the last step is always evaluated.
    """
    assert recipe.steps is not None
    if not evaluations(read_log(folder / LOG), recipe.steps):
        never = 10.0 * recipe.steps
        options = RunOptions(
            out=str(folder),
            save_every=30,
            keep_last=1,
            probe_every=probe_every or never,
            probe_images=ALL_IMAGES,
            pictures_every=never,
        )
        pretrain(recipe, options)
    return read_log(folder / LOG)


def evaluations(log: list[dict[str, Any]], step: int | None = None) -> list[dict[str, Any]]:
    """Entries with accuracies, of any step or of one."""
    return [entry for entry in log if "knn" in entry and step in (None, entry["step"])]
