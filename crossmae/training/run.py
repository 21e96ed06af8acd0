"""A pretraining run from recipe to encoder."""

from dataclasses import replace
from pathlib import Path

from crossmae.checkpoint.encoders import StartingEncoder, starting_encoder
from crossmae.masking import noise_length
from crossmae.model import MaskedAutoencoder
from crossmae.planning.here import cost_here
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.data.factory import open_images
from crossmae.training.devices import launched, processes
from crossmae.training.loop import Run, check_place, check_settings, checkpoints_in
from crossmae.training.plan import PretrainingPlan, describe, make_plan
from crossmae.training.precision import settled
from crossmae.training.pretraining import Pretraining
from crossmae.training.recipe import IMAGENET_IMAGES, RECIPE, Recipe, RunOptions


def pretrain(recipe: Recipe, options: RunOptions) -> MaskedAutoencoder | None:
    """Pretrain by a recipe into the options' folder.

    The folder then holds ``model.safetensors`` (the newest), ``checkpoints/``, ``recipe.json``, ``log.jsonl``,
    ``tensorboard/``, ``pictures/`` and the names of unreadable images, if any.

    A run resumes in its folder as the same run: what it computes must match ``recipe.json``, but its length and how it
    runs may change.

    Returns:
        The model, on the device that trained it; None after a dry run. A run stopped by SIGTERM or SIGINT returns the
        model trained so far.

    Raises:
        ValueError, OSError: before any work, if recipe, images or folder do not allow a run.
        RuntimeError: if a loss is not finite, naming the first non-finite tensor, or if no checkpoint can be resumed.
    """
    run = prepare(recipe, options)
    return None if run is None else run.fit().model


def prepare(recipe: Recipe, options: RunOptions) -> Run | None:
    """Prepare a run for training, see ``pretrain``; returns None after a dry run."""
    folder = Path(options.out)
    check_place(folder, options)
    resumes = bool(checkpoints_in(folder))
    start = None if resumes else _start(recipe, options)
    words = "" if start is None else start.said
    if options.dry_run and not recipe.data.source:
        print(f"No images given: planning for the {IMAGENET_IMAGES:,} images of ImageNet-1k.")
        _tell(make_plan(recipe, IMAGENET_IMAGES, processes(options), start=words), options)
        return None
    recipe, images = open_dataset(recipe, options.strict)
    plan = make_plan(recipe, len(images), processes(options), images.found, words)
    if resumes or not options.dry_run:  # a plan alone measures nothing
        recipe = replace(recipe, precision=settled(plan, folder / RECIPE if resumes else None))
        plan = replace(plan, recipe=recipe)
        check_settings(folder, recipe)
    if options.dry_run:
        _tell(plan, options)
        return None
    fabric = launched(plan, options)
    return Run(Pretraining(plan, images, options, start), options, folder, fabric)


def _tell(plan: PretrainingPlan, options: RunOptions) -> None:
    """What a dry run prints: the plan, and what it costs on the GPUs that are here."""
    print(describe(plan))
    print(f"\n{cost_here(plan, options)}")


def _start(recipe: Recipe, options: RunOptions) -> StartingEncoder | None:
    """The encoder that a recipe starts from, if it does."""
    if recipe.init is None:
        return None
    if options.resume not in ("auto", "never"):
        raise ValueError(f"init={recipe.init} and resume={options.resume} both say what to start from; pass only one")
    return starting_encoder(recipe.config(), recipe.init)


def open_dataset(recipe: Recipe, strict: bool = False) -> tuple[Recipe, ImageDataset]:
    """A recipe's images, and the recipe completed by what was found in them."""
    config = recipe.config()
    noise = noise_length(recipe.masking, config.patches)
    images = open_images(recipe.data, config.channels, config.image_size, noise, recipe.seed, strict)
    return replace(recipe, data=images.data), images
