"""A fine-tuning run from checkpoint to classifier."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from crossmae.model.config import Config
from crossmae.training.data.config import DataConfig
from crossmae.training.data.factory import open_images
from crossmae.training.devices import launched, processes
from crossmae.training.finetuning.classifier import Classifier, starting_point
from crossmae.training.finetuning.labels import Classes, classes_of
from crossmae.training.finetuning.recipe import SCRATCH, FinetuningOptions, FinetuningRecipe
from crossmae.training.finetuning.task import Finetuning, FinetuningPlan, describe
from crossmae.training.loop import Run, check_place, check_settings
from crossmae.training.recipe import IMAGENET_IMAGES

IMAGENET_CLASSES = 1000


def finetune(recipe: FinetuningRecipe, options: FinetuningOptions) -> Classifier | None:
    """Fine-tune by a recipe into the options' folder; resumes and stops like ``pretrain``.

    The folder then holds ``model.safetensors`` (the newest encoder, for ``crossmae.load``), ``checkpoints/`` (for
    ``load_classifier``), ``recipe.json``, ``log.jsonl``, ``tensorboard/`` and ``pictures/``.

    Returns:
        The classifier, on the device that trained it; None after a dry run.

    Raises:
        ValueError, OSError: before any work, if recipe, checkpoint, images, labels or folder do not allow a run.
        RuntimeError: if a loss is not finite, or if no checkpoint can be resumed from.
    """
    run = prepare(recipe, options)
    if run is None:
        return None
    classifier = run.fit()
    assert isinstance(classifier, Classifier)
    return classifier


def prepare(recipe: FinetuningRecipe, options: FinetuningOptions) -> Run | None:
    """Prepare a run for training, see ``finetune``; returns None after a dry run."""
    if options.strategy == "fsdp" and recipe.ema is not None:
        raise ValueError("ema keeps a whole copy of the model, but strategy fsdp shards it; use ddp, or leave out ema")
    folder = Path(options.out)
    check_place(folder, options)
    planned = options.dry_run and recipe.checkpoint == SCRATCH
    with torch.device("meta" if planned else "cpu"):  # planning needs no weights
        model = starting_point(recipe)
    if options.dry_run and not recipe.data.source:
        print(f"No images given: planning for the {IMAGENET_IMAGES:,} images of ImageNet-1k.")
        plan = FinetuningPlan(recipe, model.config, IMAGENET_IMAGES, processes(options))
        print(describe(plan, Classes(tuple(map(str, range(IMAGENET_CLASSES))))))
        return None
    data = with_statistics(recipe.data, model.config)
    images = open_images(data, model.config.channels, model.config.image_size, 0, recipe.seed, options.strict)
    classes = classes_of(images)
    recipe = replace(recipe, data=images.data, classes=classes.names)
    statistics = {f"pixel_{name}": getattr(images.data, name) for name in ("mean", "std", "numbers", "nodata")}
    model.config = replace(model.config, **statistics)
    model.register_pixel_statistics()
    plan = FinetuningPlan(recipe, model.config, len(images), processes(options), images.found)
    check_settings(folder, recipe)
    if options.dry_run:
        print(describe(plan, classes))
        return None
    fabric = launched(plan, options)
    return Run(Finetuning(plan, model, images, classes, options), options, folder, fabric)


def with_statistics(data: DataConfig, config: Config) -> DataConfig:
    """Data settings with the pixel statistics that an encoder was trained with, if it stores them.

    Raises:
        ValueError: if different ones are set.
    """
    if config.pixel_mean is None or config.pixel_std is None:
        return data
    for name, own in (("mean", config.pixel_mean), ("std", config.pixel_std)):
        given = getattr(data, name)
        if given is not None and not all(map(math.isclose, given, own)):
            raise ValueError(
                f"data.{name} is {given}, but the encoder was trained with {own}; data.mean=null and "
                "data.std=null use those"
            )
    return replace(
        data,
        mean=config.pixel_mean,
        std=config.pixel_std,
        numbers=data.numbers or config.pixel_numbers,
        nodata=config.pixel_nodata if data.nodata is None else data.nodata,
    )
