"""Fine-tuning as a task: loss on mixed images, held-out accuracy, curves and a confusion matrix."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from tabulate import tabulate
from torch import Tensor, nn
from typing_extensions import override

from crossmae.figures import draw_confusion, draw_learning
from crossmae.model import MaskedAutoencoder
from crossmae.training.data.batches import Batch
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.finetuning.classifier import CLASSES, Classifier, parameter_groups
from crossmae.training.finetuning.evaluation import Found, HeldOut
from crossmae.training.finetuning.labels import Classes
from crossmae.training.finetuning.mixing import Mixing
from crossmae.training.finetuning.recipe import FinetuningOptions, FinetuningRecipe
from crossmae.training.monitor import LOG, read_log
from crossmae.training.plan import Plan, memory, row_of_hidden_layers, rows_of_memory, rows_of_the_optimizer
from crossmae.training.step import Stepper
from crossmae.training.task import Task, TrainedModule


@dataclass(frozen=True)
class FinetuningPlan(Plan):
    """A plan whose micro-batches are even if images are mixed in pairs."""

    recipe: FinetuningRecipe

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recipe.mixes and self.micro_batch % 2:
            raise ValueError(
                "micro-batches must be even, since mixup and cutmix take pairs, got "
                f"{self.micro_batch} with batch_size {self.recipe.batch_size}; mixup=0 and cutmix=0 turn them off"
            )


class Finetuning(Task):
    """Classification, training the encoder too.

    Args:
        plan: of the run.
        model: the encoder to start from.
        images: for training, with held-out ones.
        classes: of all images.
        options: of the run.
    """

    score: ClassVar[str] = "top1"
    plan: FinetuningPlan

    def __init__(
        self,
        plan: FinetuningPlan,
        model: MaskedAutoencoder,
        images: ImageDataset,
        classes: Classes,
        options: FinetuningOptions,
    ) -> None:
        super().__init__("fine-tuning", plan, images, options.evaluate_every)
        assert images.evaluation is not None
        self._model, self._classes = model, classes
        self._mixing = Mixing(plan.recipe, len(classes.names))
        self._held_out = HeldOut(images.evaluation, len(classes.names), plan.recipe.data.workers)
        self.unreadable = self._held_out.unreadable
        self.metadata = {CLASSES: json.dumps(classes.names)}
        self.average = plan.recipe.ema
        self._found: Found | None = None

    @override
    def describe(self) -> str:
        return describe(self.plan, self._classes)

    @override
    def module(self) -> TrainedModule:
        return Classifier(self._model, self._classes.names)

    @override
    def loss(self, module: Callable[..., Tensor], batch: Batch, step: int) -> Tensor:
        images = self._model.normalized(batch.images).to(next(self._model.parameters()).dtype)
        return module(*self._mixing(images, batch.labels))

    @override
    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        return parameter_groups(module, self.plan.recipe.weight_decay, self.plan.recipe.layer_decay)

    @override
    def evaluate(self, stepper: Stepper) -> dict[str, float]:
        called: Any = stepper.loss if stepper.averaged is None else stepper.averaged.module
        dtype = next(self._model.parameters()).dtype
        called.eval()
        try:
            self._found = self._held_out.evaluate(
                lambda images: called(self._model.normalized(images).to(dtype)), stepper.fabric
            )
        finally:
            stepper.loss.train()
        return self._found.accuracies

    @override
    def draw(self, stepper: Stepper, folder: Path) -> list[Path]:
        if not stepper.fabric.is_global_zero or self._found is None:
            return []
        folder.mkdir(exist_ok=True)
        log = read_log(folder.parent / LOG)
        files = [folder / f"{name}-{stepper.step:08d}.png" for name in ("curves", "confusion")]
        curves = {name: {e["step"]: e[name] for e in log if name in e} for name in ("top1", "top5")}
        losses = {"on mixed images" if self.plan.recipe.mixes else "loss": [e["loss"] for e in log if "loss" in e]}
        titles = ("training loss", "held-out images")
        draw_learning(losses, curves, {}, files[0], titles, accuracy="accuracy, %")
        draw_confusion(self._found.confusion, self._classes.names, files[1])
        return files


def describe(plan: FinetuningPlan, classes: Classes) -> str:
    """The plan as text, with predicted memory."""
    recipe, config = plan.recipe, plan.config

    def loss(module: nn.Module, images: Tensor) -> object:
        return module(images, torch.empty(len(images), len(classes.names)))

    parameters, kept = memory(plan, lambda: Classifier(MaskedAutoencoder(config), classes.names), loss)
    first = recipe.layer_decay ** (config.encoder_depth + 1)
    mixed = [f"{name} {value:g}" for name in ("mixup", "cutmix", "erasing") if (value := getattr(recipe, name))]
    named = f", {recipe.model}" if recipe.model else ""
    rows = [
        ("encoder", f"{recipe.checkpoint}{named}, {parameters / 1e6:,.1f} M parameters with the head"),
        ("images", f"{plan.images:,} of {config.image_size[0]} x {config.image_size[1]}, {config.channels} channels"),
        *([("pixels", plan.found)] if plan.found else []),
        ("classes", "; ".join(part for part in (f"{len(classes.names):,}", classes.remark) if part)),
        ("layer decay", f"{recipe.layer_decay:g}, from 1 at the head to {first:.2g} at the embedding"),
        ("regularisation", ", ".join([*mixed, *_smoothing(recipe)]) or "none"),
        *rows_of_the_optimizer(plan),
        *rows_of_memory(parameters, kept),
        row_of_hidden_layers(plan, config.patches + config.class_tokens),
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _smoothing(recipe: FinetuningRecipe) -> list[str]:
    names = {"label smoothing": recipe.label_smoothing, "drop path": recipe.drop_path}
    words = [f"{name} {value:g}" for name, value in names.items() if value]
    words += [recipe.data.randaugment] if recipe.data.randaugment else []
    return words + ([f"weights averaged with decay {recipe.ema:g}"] if recipe.ema else [])
