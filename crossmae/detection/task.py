"""Detection as a training task: Mask R-CNN's losses, evaluated by COCO's average precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from crossmae.detection.backbone import backbone_model
from crossmae.detection.checkpoint import head_metadata
from crossmae.detection.dataset import ObjectBatch, TrainingImages, collate
from crossmae.detection.detector import Detector, HeadConfig
from crossmae.detection.evaluation import Evaluation
from crossmae.detection.plan import DetectionPlan, describe, parameter_groups
from crossmae.detection.recipe import DetectionOptions
from crossmae.detection.scoring import headline
from crossmae.model import MaskedAutoencoder
from crossmae.training.step import Stepper
from crossmae.training.task import Task


class Detection(Task):
    """Trains a detector on a pretrained encoder.

    Args:
        plan: of the run.
        head: settings of the detector beside its encoder's.
        pretrained: the model with the pretrained encoder; None to start from random weights.
        images: for training.
        evaluation: of the detector, if there is any.
        options: of the run.
    """

    score: ClassVar[str] = "box AP"
    plan: DetectionPlan

    def __init__(
        self,
        plan: DetectionPlan,
        head: HeadConfig,
        pretrained: MaskedAutoencoder | None,
        images: TrainingImages,
        evaluation: Evaluation | None,
        options: DetectionOptions,
    ) -> None:
        super().__init__("Mask R-CNN", plan, images, options.evaluate_every)
        self._head, self._pretrained, self._evaluation = head, pretrained, evaluation
        self.collate = collate
        self.evaluates = evaluation is not None
        self.metadata = head_metadata(head)

    @override
    def describe(self) -> str:
        return describe(self.plan, self._head)

    @override
    def module(self) -> Detector:
        config = self.plan.config
        model = MaskedAutoencoder(config) if self._pretrained is None else backbone_model(self._pretrained, config)
        return Detector(model, self._head)

    @override
    def loss(self, module: Callable[..., Tensor], batch: ObjectBatch, step: int) -> Tensor:
        return module(batch.images, batch.targets)

    @override
    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        return parameter_groups(module, self.plan)

    @override
    def evaluate(self, stepper: Stepper) -> dict[str, float] | None:
        assert self._evaluation is not None  # the loop calls this only if there is an evaluation
        assert isinstance(stepper.module, Detector)
        found = self._evaluation.detections(stepper.module, stepper.fabric)
        self.unreadable = self._evaluation.unreadable
        return headline(self._evaluation.score(found)) if stepper.fabric.is_global_zero else None

    @override
    def draw(self, stepper: Stepper, folder: Path) -> list[Path]:
        if self._evaluation is None or not stepper.fabric.is_global_zero:
            return []
        assert isinstance(stepper.module, Detector)
        folder.mkdir(exist_ok=True)
        path = folder / f"detections-{stepper.step:08d}.png"
        self._evaluation.draw(stepper.module, path)
        return [path]
