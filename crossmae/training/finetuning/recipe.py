"""The settings of a fine-tuning run."""

import math
from dataclasses import dataclass, field
from typing import Any

from crossmae.training.recipe import Options, TrainingRecipe

SCRATCH = "scratch"


@dataclass(frozen=True)
class FinetuningRecipe(TrainingRecipe):
    """Everything that the result of fine-tuning depends on.

    Args:
        checkpoint: what ``crossmae.load`` takes, of which the encoder is fine-tuned; or "scratch", random weights.
        model: name of the model that the encoder is one of; see ``crossmae.list_models``. Its checkpoint's if null.
        image_size: side of square images in pixels, or height and width; positions are interpolated. The checkpoint's
            own unless given.
        model_options: arguments of ``crossmae.load`` that the checkpoint does not tell, such as ``num_heads``, or how
            the model runs, such as ``gradient_checkpointing``; from scratch any field of ``crossmae.Config``.
        classes: what the classes are called; found in the images.
        layer_decay: factor on the learning rate from each block to the one before (arXiv 2003.10555).
        drop_path: rate at which an image skips a residual branch of the last block, falling to 0 at the first.
        label_smoothing: share of a target that is spread over all classes.
        mixup: alpha of mixup (arXiv 1710.09412), 0 for none.
        cutmix: alpha of CutMix (arXiv 1905.04899), 0 for none; half of the batches where mixup is set too.
        erasing: share of the images of which a random rectangle becomes noise (arXiv 1708.04896).
        ema: decay of an average of the weights, which is evaluated and kept beside them; none by default.
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
            wrong.append("precision auto is for pretraining, which it measures; take bfloat16 or float32")
        if self.checkpoint == SCRATCH and self.model is None:
            wrong.append("model must be named to start from scratch")
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
