"""Small pretraining runs on real digits, and what they leave."""

from dataclasses import replace
from pathlib import Path

from lightning_fabric import Fabric
from safetensors.torch import load_file

from crossmae.training.data.config import DataConfig
from crossmae.training.devices import make_fabric
from crossmae.training.monitor import LOG, read_log
from crossmae.training.plan import make_plan
from crossmae.training.pretraining import Pretraining
from crossmae.training.recipe import Recipe, RunOptions
from crossmae.training.run import open_dataset
from crossmae.training.step import Stepper

RECIPE = Recipe(
    model="crossmae_vit_tiny_patch4",
    model_options={"channels": 1, "encoder_depth": 2, "decoder_depth": 2, "normalize_targets": False},
    data=DataConfig(source="digits", crop_scale=None, flip=False, workers=0),
    steps=12,
    batch_size=16,
    learning_rate=1e-3,
    precision="float32",
)


def small(**changes) -> Recipe:
    """The small recipe with other settings."""
    return replace(RECIPE, **changes)


def into(folder: Path, **changes) -> RunOptions:
    """Options of a run that saves every other step and evaluates nothing before its end."""
    epoch = 1347 // RECIPE.batch_size
    options = {"save_every": 2 / epoch, "probe_every": 1000, "pictures_every": 1000, "log_every": 3, "probe_images": 60}
    return RunOptions(out=str(folder), **{**options, **changes})


def stepper_of(recipe: Recipe, options: RunOptions, fabric: Fabric | None = None) -> Stepper:
    """The recipe's model and optimizer, ready to take steps on any images."""
    plan = make_plan(recipe, 1000, 1)
    _, images = open_dataset(RECIPE)
    return Stepper(Pretraining(plan, images, options), fabric or make_fabric(plan, options))


def losses(folder: Path) -> dict[int, float]:
    """Logged losses by step."""
    return {entry["step"]: entry["loss"] for entry in read_log(folder / LOG) if "loss" in entry}


def weights(folder: Path) -> dict:
    """The tensors of a run's newest model."""
    return load_file(folder / "model.safetensors")
