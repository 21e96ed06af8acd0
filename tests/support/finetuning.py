"""Small fine-tuning runs on real photographs, with everything random that there is."""

from dataclasses import replace
from pathlib import Path

from crossmae.training.data.config import DataConfig
from crossmae.training.finetuning.recipe import FinetuningOptions, FinetuningRecipe

RECIPE = FinetuningRecipe(
    checkpoint="scratch",
    model="crossmae_vit_tiny_patch4",
    model_options={"encoder_depth": 2, "encoder_width": 24, "decoder_depth": 1},
    data=DataConfig(source="photographs", randaugment="rand-m9-mstd0.5-inc1", workers=0),
    steps=12,
    batch_size=8,
    learning_rate=1e-3,
    drop_path=0.3,
    erasing=0.5,
    precision="float32",
)


def tuned(**changes) -> FinetuningRecipe:
    """The small recipe with other settings."""
    return replace(RECIPE, **changes)


def into(folder: Path, **changes) -> FinetuningOptions:
    """Options of a run that saves every other step and evaluates nothing before its end."""
    epoch = 3800 // RECIPE.batch_size
    options = {"save_every": 2 / epoch, "evaluate_every": 1000, "pictures_every": 1000, "log_every": 3}
    return FinetuningOptions(out=str(folder), **{**options, **changes})
