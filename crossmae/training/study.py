"""Small studies of what encoders learn with different decoders: tiny models, tasks without downloads."""

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
    # Much of a scanned digit is blank, and a normalised blank patch is rounding noise.
    "digits": {"channels": 1, "normalize_targets": False},
    "photographs": {"channels": 3},
}


@dataclass(frozen=True)
class Variant:
    """A decoder, as its differences from the tiny CrossMAE."""

    name: str
    family: str = "crossmae"
    prediction_ratio: float = 0.25
    inter_block: bool = True
    self_attention: bool = False


def recipe_of(variant: Variant, task: str, seed: int, steps: int, precision: Precision = "float32") -> Recipe:
    """The run of one variant on one task: all have the same encoder and, for the same seed, see the same batches."""
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
    """Run, or resume, a recipe to its end and return its log; a finished run is not repeated.

    Args:
        recipe: the run.
        folder: of the run.
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
    """Log entries with accuracies, of all steps or of one."""
    return [entry for entry in log if "knn" in entry and step in (None, entry["step"])]
