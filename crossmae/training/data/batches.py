"""Samples in batches, by worker processes."""

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
    """What the loop asks of a batch."""

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names and reasons of images in whose place others came."""

    def to(self, device: torch.device | str) -> Self:
        """On another device."""


B = TypeVar("B", bound=AnyBatch)
Collate = Callable[[Sequence[Any]], B]
Batches = Sampler[Any] | Sequence[Any]
"""Indices of the samples of each batch."""


@dataclass(frozen=True)
class Batch:
    """Images ``(B, C, H, W)``, noise ``(B, N)``, labels ``(B,)``, and what was unreadable; see ``Sample``."""

    images: Tensor
    noise: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Batch":
        """On another device; from pinned memory without waiting for it."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """In page-locked memory; PyTorch's loader calls it."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(move(self.images), move(self.noise), move(self.labels), self.unreadable)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples, stacked."""
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
    """Batches as ``batches`` lists them, loaded by ``workers`` processes (0: by this one), pinned for a CUDA device."""
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
    """Forked workers share the index of the data set and start at once, on Linux: see docs/design.md."""
    return "fork" if sys.platform == "linux" else "spawn"


def _obey_parent_alone(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach workers too, but the step under way needs them: the parent stops them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_parent_says, daemon=True).start()


def _exit_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
