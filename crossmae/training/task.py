"""What a run trains, as far as the loop must know it."""

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
    """What is trained, in the form that data-parallel wrappers need: called with tensors, it returns one, the loss.

    A checkpoint keeps ``model`` for ``crossmae.load``, and what else the module holds in a file of its own.
    """

    model: MaskedAutoencoder


class Task(ABC):
    """A task to train for; loop, optimizer, checkpoints, log and resumption are the same for all.

    Attributes:
        name: in front of the progress line.
        collate: makes a batch of samples of the images.
        score: the result of ``evaluate`` that the best checkpoint is chosen by; the loss where nothing is evaluated.
        evaluates: whether there is something to evaluate on.
        evaluate_every: epochs between evaluations.
        metadata: words about what the module holds beside its model, to be kept with it.
        average: decay of an average of the weights that is kept beside them, or None.
        unreadable: names and reasons of images that an evaluation did without.
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
        """The plan in words, as a dry run prints it."""

    @abstractmethod
    def module(self) -> TrainedModule:
        """What is to be trained, made anew; its model has the configuration of the plan."""

    @abstractmethod
    def loss(self, module: Callable[..., Tensor], batch: Any, step: int) -> Tensor:
        """The loss of a micro-batch of a step, by the module in its wrappers.

        PyTorch's generators are seeded for the step before, other ones are not.
        """

    @abstractmethod
    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """AdamW's, with the weight decay of each; ``lr_scale``, where a group has one, multiplies the learning rate."""

    @abstractmethod
    def evaluate(self, stepper: "Stepper") -> dict[str, float] | None:
        """Accuracies by name; every device calls, and the first at least gets them. Nothing of the run may change."""

    @abstractmethod
    def draw(self, stepper: "Stepper", folder: Path) -> list[Path]:
        """Draw into a folder what there is to see; every device calls, and the first gets the files."""
