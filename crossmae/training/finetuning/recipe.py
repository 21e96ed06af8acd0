"""The settings of a fine-tuning run."""

import math
from dataclasses import dataclass, field
from typing import Any

from crossmae.training.recipe import Options, TrainingRecipe

SCRATCH = "scratch"


@dataclass(frozen=True)
class FinetuningRecipe(TrainingRecipe):
    """Everything the result of fine-tuning depends on.

    Args:
        checkpoint: any checkpoint for ``crossmae.load``, whose encoder is fine-tuned; or "scratch" for random weights.
        model: name of the encoder's model, see ``crossmae.list_models``; if null, the checkpoint's.
        image_size: side of square images in pixels, or height and width; position embeddings are interpolated. By
            default the checkpoint's own.
        model_options: arguments of ``crossmae.load``: settings the checkpoint lacks, such as ``num_heads``, or how the
            model runs, such as ``gradient_checkpointing``; from scratch, any field of ``crossmae.Config``.
        classes: names of the classes; found in the images.
        layer_decay: factor on the learning rate from each block to the one below (arXiv 2003.10555).
        drop_path: rate of stochastic depth in the last block, falling linearly to 0 at the first.
        label_smoothing: share of a target that is spread over all classes.
        mixup: alpha of mixup (arXiv 1710.09412), 0 for none.
        cutmix: alpha of CutMix (arXiv 1905.04899), 0 for none; applied to half of the batches if mixup is set too.
        erasing: share of images in which a random rectangle is replaced by noise (arXiv 1708.04896).
        ema: decay of an exponential moving average of the weights, which is evaluated and saved too; none by default.
    """

    checkpoint: str | None = None
    model: str | None = None
    image_size: int | tuple[int, int] | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    epochs: float = 100
    batch_size: int = 1024
    base_learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.65
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    erasing: float = 0.25
    ema: float | None = None

    def _wrong(self) -> list[str]:
        wrong = []
        if not 0 < self.layer_decay <= 1:
            wrong.append(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        for name in ("drop_path", "label_smoothing", "erasing", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                wrong.append(f"{name} must lie in [0, 1), got {value}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                wrong.append(f"{name} must not be negative, got {getattr(self, name)}")
        if self.precision == "auto":
            wrong.append("precision auto measures pretraining steps only; use bfloat16 or float32")
        if self.checkpoint == SCRATCH and self.model is None:
            wrong.append("starting from scratch needs the name of a model")
        return wrong + super()._wrong()

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class FinetuningOptions(Options):
    """Options of a fine-tuning run.

    Args:
        evaluate_every: epochs between evaluations on the held-out images.
        pictures_every: epochs between pictures of curves and of the confusion matrix.
    """

    out: str = "finetuning"
    evaluate_every: float = 1
    pictures_every: float = 10
