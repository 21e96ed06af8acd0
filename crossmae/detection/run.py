"""A detection run from recipe to detector."""

from dataclasses import replace
from pathlib import Path

from crossmae.checkpoint import load
from crossmae.detection.annotations import Annotations
from crossmae.detection.backbone import backbone_config
from crossmae.detection.dataset import TrainingImages
from crossmae.detection.detector import HeadConfig
from crossmae.detection.opening import open_evaluation, open_images
from crossmae.detection.plan import DetectionPlan, describe
from crossmae.detection.recipe import SCRATCH, DetectionOptions, DetectionRecipe
from crossmae.detection.task import Detection
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config, named_config
from crossmae.training.devices import launched, processes
from crossmae.training.encoder_shape import refuse_another
from crossmae.training.loop import Run, check_place, check_settings

COCO_IMAGES = 117_266
"""Images of train2017 that contain objects."""


def prepare(recipe: DetectionRecipe, options: DetectionOptions) -> Run | None:
    """Prepare a run for training; returns None after a dry run.

    Raises:
        ValueError, OSError: before any work, if the recipe, checkpoint, annotations or folder do not allow a run.
    """
    if options.strategy == "fsdp":
        raise ValueError("strategy fsdp is only for pretraining; a detector fits on one device, so use ddp")
    folder = Path(options.out)
    check_place(folder, options)
    pretrained, config = encoder_of(recipe)
    if recipe.checkpoint is None and not options.dry_run:
        raise ValueError(f"checkpoint must be one that crossmae.load reads, or {SCRATCH!r}")
    if options.dry_run and recipe.data.train is None:
        print(
            f"No annotations given: planning for the {COCO_IMAGES:,} images of COCO's train2017 that contain objects."
        )
        head = HeadConfig(
            tuple((i, str(i)) for i in range(1, 81)), recipe.window, recipe.width, recipe.detector_options
        )
        print(describe(DetectionPlan(recipe, config, COCO_IMAGES, processes(options)), head))
        return None
    annotations, images = open_images(recipe.data, "train", config.channels)
    if options.strict and annotations.left_out:
        raise ValueError(f"strict: {'; '.join(annotations.describe()[1:])}")
    evaluation = (
        open_evaluation(recipe.data, config.channels, annotations.categories) if recipe.data.evaluation else None
    )
    found = _found(annotations, evaluation.annotations if evaluation else None)
    plan = DetectionPlan(recipe, config, len(images), processes(options), found)
    head = HeadConfig(annotations.categories, recipe.window, recipe.width, recipe.detector_options)
    check_settings(folder, recipe)
    if options.dry_run:
        print(describe(plan, head))
        return None
    fabric = launched(plan, options)
    data = recipe.data
    training = TrainingImages(images, recipe.image_size, data.scale, data.flip, recipe.seed, options.strict)
    return Run(Detection(plan, head, pretrained, training, evaluation, options), options, folder, fabric)


def _found(annotations: Annotations, evaluation: Annotations | None) -> str:
    """A description of the annotations, line by line."""
    held_out = evaluation.describe() if evaluation else ["nothing: data.evaluation is not given"]
    return "\n".join([*annotations.describe(), *(f"to evaluate on: {line}" for line in held_out)])


def encoder_of(recipe: DetectionRecipe) -> tuple[MaskedAutoencoder | None, Config]:
    """A recipe's pretrained model (None from scratch), and its encoder's configuration as a backbone.

    Raises:
        ValueError: if the checkpoint's encoder differs from the recipe's model, or was trained on other numbers.
    """
    model, config = None, None
    if recipe.model is not None:
        config = named_config(recipe.model, **(recipe.model_options if recipe.checkpoint == SCRATCH else {}))
    if recipe.checkpoint not in (None, SCRATCH):
        model = load(recipe.checkpoint, **recipe.model_options)
        if config is not None:
            refuse_another(recipe.checkpoint, recipe.model, config, model.config)
        config = model.config
    if config is None:
        raise ValueError(f"checkpoint must be one that crossmae.load reads, or {SCRATCH!r} with the name of a model")
    if config.pixel_numbers == "values":
        raise ValueError(
            f"{recipe.checkpoint} was trained on numbers without a full scale, but images here have 8 bits"
        )
    if config.pixel_mean is None:
        config = replace(config, pixel_mean=recipe.data.mean, pixel_std=recipe.data.std)
    return model, backbone_config(replace(config, drop_path=recipe.drop_path), recipe.image_size)
