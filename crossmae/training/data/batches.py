"""Load batches of samples in worker processes."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from crossmae.training.data.dataset import Sample


class AnyBatch(Protocol):
    """The interface that the training loop expects of a batch."""

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names and reasons of images that were replaced by others."""

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""


B = TypeVar("B", bound=AnyBatch)
Collate = Callable[[Sequence[Any]], B]
Batches = Sampler[Any] | Sequence[Any]
"""Indices of the samples of each batch."""


@dataclass(frozen=True)
class Batch:
    """Images ``(B, C, H, W)``, noise ``(B, N)``, labels ``(B,)``, and unreadable images; see ``Sample``."""

    images: Tensor
    noise: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Batch":
        """Move to a device, asynchronously from pinned memory."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Move to page-locked memory; PyTorch's loader calls this."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(move(self.images), move(self.noise), move(self.labels), self.unreadable)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch."""
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.stack([sample.noise for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        tuple(name for sample in samples for name in sample.unreadable),
    )


@overload
def loader(
    dataset: Dataset[Sample], batches: Batches, workers: int, device: torch.device | str = "cpu"
) -> "DataLoader[Batch]": ...
@overload
def loader(
    dataset: Dataset[Any], batches: Batches, workers: int, device: torch.device | str, collate: Collate[B]
) -> "DataLoader[B]": ...
def loader(
    dataset: Dataset[Any],
    batches: Batches,
    workers: int,
    device: torch.device | str = "cpu",
    collate: Collate[Any] = collate,
) -> "DataLoader[Any]":
    """Load the batches listed by ``batches`` in ``workers`` processes (0: in this one), pinned for a CUDA device."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.device(device).type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_obey_parent_alone,
        multiprocessing_context=_start_method() if workers > 0 else None,
    )


def _start_method() -> str:
    """On Linux, forked workers share the data set's index and start at once: see docs/design.md."""
    return "fork" if sys.platform == "linux" else "spawn"


def _obey_parent_alone(worker: int) -> None:
    """Ignore Ctrl-C and a scheduler's SIGTERM, as the current step still needs the worker: the parent stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_parent_says, daemon=True).start()


def _exit_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
