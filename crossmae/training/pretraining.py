"""Pretraining as a task: predict masked images, probing the features along the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from crossmae.checkpoint.encoders import StartingEncoder
from crossmae.masking import Masking, draw_masking
from crossmae.model import MaskedAutoencoder
from crossmae.training.data.batches import Batch
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.evaluation import Evaluation
from crossmae.training.plan import PretrainingPlan, describe
from crossmae.training.recipe import RunOptions
from crossmae.training.step import Stepper
from crossmae.training.task import Task, TrainedModule


class Pretraining(Task):
    """Pretrains an encoder with a decoder; evaluates by kNN and a linear probe on frozen features."""

    score: ClassVar[str] = "knn"
    plan: PretrainingPlan

    def __init__(
        self, plan: PretrainingPlan, images: ImageDataset, options: RunOptions, start: StartingEncoder | None = None
    ) -> None:
        super().__init__(plan.recipe.model, plan, images, options.probe_every)
        self._start = start
        self._evaluation = Evaluation(images, plan, options.probe_images)
        self.evaluates = self._evaluation.has_labels
        self.unreadable = self._evaluation.unreadable

    @override
    def describe(self) -> str:
        return describe(self.plan)

    @override
    def module(self) -> TrainedModule:
        model = MaskedAutoencoder(self.plan.config)
        if self._start is not None:
            self._start.put_into(model)
        return PretrainingLoss(model)

    @override
    def loss(self, module: Callable[..., Tensor], batch: Batch, step: int) -> Tensor:
        plan = self.plan
        mask = draw_masking(plan.recipe.masking, plan.config.grid, *plan.ratios(step), batch.noise)
        return module(batch.images, mask.visible_ids, mask.predicted_ids)

    @override
    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        return parameter_groups(module, self.plan.recipe.weight_decay)

    @override
    def evaluate(self, stepper: Stepper) -> dict[str, float] | None:
        model = stepper.whole_model()
        return None if model is None else self._evaluation.probe(model)

    @override
    def draw(self, stepper: Stepper, folder: Path) -> list[Path]:
        model = stepper.whole_model()
        return [] if model is None else self._evaluation.draw(model, stepper.step, folder)


class PretrainingLoss(TrainedModule):
    """A masked autoencoder's loss."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, visible_ids: Tensor, predicted_ids: Tensor) -> Tensor:
        """The loss of images ``(B, C, H, W)`` as read, uint8 or floating point, and a mask drawn for them.

        The mask is an argument because ratios may change from epoch to epoch: this way its sizes are dynamic to the
        compiler, while every ratio would otherwise be another graph, and after eight nothing would be compiled.
        """
        model = self.model
        if images.dtype != torch.uint8 or next(model.parameters()).dtype == torch.float64:
            images = model.normalized(images)
        return model(images, masking=Masking(visible_ids, predicted_ids, model.config.patches)).loss


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups with weight decay for all parameters except one-dimensional ones: biases and norms."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
