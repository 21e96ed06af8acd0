"""The settings of a detection run; YAML files and the command line fill them in."""

from dataclasses import dataclass, field
from typing import Any

from crossmae.training.recipe import Options, TrainingRecipe

SCRATCH = "scratch"
SHAPES = "shapes"
"""The value of ``DetectionData.train`` and ``evaluation`` for generated images."""


@dataclass(frozen=True)
class DetectionData:
    """Images with annotations in COCO's format, and how to process them.

    Args:
        train: JSON file of annotations for training, or "shapes": generated discs, squares and triangles.
        train_images: folder of its images; by default, for ``annotations/instances_<part>.json``, the folder ``<part>``
            beside ``annotations``, as in COCO, and for other files their own folder.
        evaluation: annotations for evaluation, likewise.
        evaluation_images: folder of its images, likewise.
        scale: range of large-scale jitter, relative to the scale at which an image fits.
        flip: whether to flip images horizontally at random.
        mean: of each channel, as fractions of full brightness, if the checkpoint does not store its own.
        std: standard deviation of each channel, likewise.
        workers: processes that load images, per training process; 0 loads in the training process itself.
    """

    train: str | None = None
    train_images: str | None = None
    evaluation: str | None = None
    evaluation_images: str | None = None
    scale: tuple[float, float] = (0.1, 2.0)
    flip: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    workers: int = 4

    def __post_init__(self) -> None:
        wrong = []
        if not 0 < self.scale[0] <= self.scale[1] <= 16:
            wrong.append(f"scale must be a range within (0, 16], got {self.scale}")
        if self.workers < 0:
            wrong.append(f"workers must not be negative, got {self.workers}")
        if wrong:
            raise ValueError("data: " + "; ".join(wrong))


@dataclass(frozen=True)
class DetectionRecipe(TrainingRecipe):
    """Everything the result of training a detector depends on.

    Args:
        data: the images.
        checkpoint: any checkpoint for ``crossmae.load``, whose encoder becomes the backbone; or "scratch" for random
            weights.
        model: name of the encoder's model, see ``crossmae.list_models``; if null, the checkpoint's.
        model_options: arguments of ``crossmae.load``: settings the checkpoint lacks, such as ``num_heads``, or how the
            model runs, such as ``gradient_checkpointing``; from scratch, any field of ``crossmae.Config``.
        image_size: side in pixels of the square that images are scaled to.
        window: side of the attention windows, in patches.
        width: channels of the feature maps and of the heads' convolutions.
        detector_options: numeric arguments of torchvision's ``MaskRCNN``, such as ``box_score_thresh``.
        epochs: passes over the images.
        batch_size: images per optimizer step, over all devices and micro-batches.
        base_learning_rate: of the heads, for 256 images; a run's is this x batch size / 256, 1e-4 for ViTDet's 64. It
            drops to a tenth after 8/9 and after 26/27 of the run.
        drop_path: rate of stochastic depth in the last block, falling linearly to 0 at the first.
        layer_decay: factor on the learning rate from each block to the one below.
        warmup: fraction of the run over which the learning rate rises from 0; ViTDet's 250 steps.
        weight_decay: AdamW's, for all parameters except biases and norms.
        betas: AdamW's.
    """

    data: DetectionData = field(default_factory=DetectionData)  # type: ignore[assignment]  # the loop asks for workers
    checkpoint: str | None = None
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 1024
    window: int = 14
    width: int = 256
    detector_options: dict[str, Any] = field(default_factory=dict)
    epochs: float = 100
    batch_size: int = 64
    base_learning_rate: float = 4e-4
    drop_path: float = 0.1
    layer_decay: float = 0.7
    warmup: float = 250 / 184_375
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)

    def _wrong(self) -> list[str]:
        wrong = super()._wrong()
        if self.checkpoint == SCRATCH and self.model is None:
            wrong.append("starting from scratch needs the name of a model")
        if not 0 <= self.drop_path < 1:
            wrong.append(f"drop_path must lie in [0, 1), got {self.drop_path}")
        for name in ("window", "width", "image_size"):
            if getattr(self, name) < 1:
                wrong.append(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            wrong.append(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if self.precision == "auto":
            wrong.append("precision auto measures pretraining steps only; use bfloat16 or float32")
        if self.execution != "eager":
            wrong.append(
                f"execution must be eager, since the shapes of a detector's tensors change, got {self.execution}"
            )
        return wrong


@dataclass(frozen=True)
class DetectionOptions(Options):
    """Options of a detection run.

    Args:
        out: folder of the run, or of an evaluation; created if missing.
        evaluate: only evaluate this checkpoint of a detection run, or the newest in a run's folder. Of the recipe, only
            ``data.evaluation`` counts, by default the run's own.
        evaluate_every: epochs between evaluations, if there are images for it.
        pictures_every: epochs between pictures of detections in evaluation images.
    """

    out: str = "detection"
    evaluate: str | None = None
    evaluate_every: float = 5
    pictures_every: float = 5
