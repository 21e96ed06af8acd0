"""The interface between the training loop and what it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.utils.data import Dataset

from crossmae.model import MaskedAutoencoder
from crossmae.training.data.batches import AnyBatch, collate
from crossmae.training.plan import Plan

if TYPE_CHECKING:
    from crossmae.training.step import Stepper


class TrainedModule(nn.Module):
    """The trained module, in the form that data-parallel wrappers need: it maps tensors to one tensor, the loss.

    A checkpoint stores ``model`` for ``crossmae.load``, and the rest of the module in a separate file.
    """

    model: MaskedAutoencoder


class Task(ABC):
    """A training task; loop, optimizer, checkpoints, log and resumption are shared by all tasks.

    Attributes:
        name: label of the progress bar.
        collate: combines samples of the images into a batch.
        score: the result of ``evaluate`` that selects the best checkpoint; the loss if nothing is evaluated.
        evaluates: whether there are images to evaluate on.
        evaluate_every: epochs between evaluations.
        metadata: text stored with the part of the module beside its model.
        average: decay of the moving average of the weights to keep, or None.
        unreadable: names and reasons of images that an evaluation skipped.
    """

    score: ClassVar[str]

    def __init__(self, name: str, plan: Plan, images: Dataset[Any], evaluate_every: float) -> None:
        self.name, self.plan, self.images, self.evaluate_every = name, plan, images, evaluate_every
        self.collate: Callable[[Sequence[Any]], AnyBatch] = collate
        self.evaluates = True
        self.metadata: dict[str, str] = {}
        self.average: float | None = None
        self.unreadable: dict[str, None] = {}

    @abstractmethod
    def describe(self) -> str:
        """The plan as text, printed by a dry run."""

    @abstractmethod
    def module(self) -> TrainedModule:
        """Create the module to train; its model has the plan's configuration."""

    @abstractmethod
    def loss(self, module: Callable[..., Tensor], batch: Any, step: int) -> Tensor:
        """The loss of a micro-batch, computed by the wrapped module.

        PyTorch's generators have been seeded for the step, others have not.
        """

    @abstractmethod
    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Groups for AdamW, each with its weight decay; an ``lr_scale``, if present, multiplies the learning rate."""

    @abstractmethod
    def evaluate(self, stepper: "Stepper") -> dict[str, float] | None:
        """Accuracies by name, returned at least on the first device; every device calls. Must not change the run."""

    @abstractmethod
    def draw(self, stepper: "Stepper", folder: Path) -> list[Path]:
        """Draw pictures into a folder; every device calls, and the first one gets the files."""
