"""Small detection runs on generated shapes."""

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from crossmae.detection.recipe import DetectionData, DetectionOptions, DetectionRecipe
from crossmae.detection.run import prepare
from crossmae.training.monitor import LOG, read_log

# Of 32 generated images, which hold 5 objects at most.
TRAINING, EVALUATION = 32, 4
FEW = ("rpn_pre_nms_top_n", "rpn_post_nms_top_n")
RECIPE = DetectionRecipe(
    checkpoint="scratch",
    model="crossmae_vit_tiny_patch4",
    model_options={"patch_size": 16, "encoder_width": 32, "encoder_heads": 2, "encoder_depth": 5},
    drop_path=0.2,
    data=DetectionData(train="shapes", evaluation="shapes", scale=(0.5, 1.5), workers=0),
    image_size=64,
    window=3,
    width=8,
    detector_options={f"{name}_{mode}": 20 for name in FEW for mode in ("train", "test")},
    steps=4,
    batch_size=4,
    precision="float32",
)


def few_shapes(monkeypatch):
    """Let the generated set be a small one."""
    monkeypatch.setattr("crossmae.detection.opening.TRAINING_SHAPES", TRAINING)
    monkeypatch.setattr("crossmae.detection.opening.EVALUATION_SHAPES", EVALUATION)


def small(**changes) -> DetectionRecipe:
    """The small recipe with other settings."""
    return replace(RECIPE, **changes)


def into(folder: Path, **changes) -> DetectionOptions:
    """Options of a run that saves every other step and evaluates at its end."""
    epoch = TRAINING // RECIPE.batch_size
    options = {"save_every": 2 / epoch, "evaluate_every": 1000, "pictures_every": 1000, "log_every": 1}
    return DetectionOptions(out=str(folder), **{**options, **changes})


def train(recipe: DetectionRecipe, options: DetectionOptions) -> None:
    """A run from its newest checkpoint to its end."""
    run = prepare(recipe, options)
    assert run is not None
    run.fit()


def state(folder: Path) -> dict:
    """All tensors of a run's newest checkpoint, and the losses it logged by step."""
    newest = max((folder / "checkpoints").glob("step-*"))
    losses = {entry["step"]: entry["loss"] for entry in read_log(folder / LOG) if "loss" in entry}
    return {**load_file(newest / "model.safetensors"), **load_file(newest / "head.safetensors"), "losses": losses}
