"""The interface of all image sources, and compact storage for a million file names."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crossmae.model.config import Numbers
from crossmae.training.data.values import Picture


class Source(ABC):
    """Images in a fixed order, with random access.

    Attributes:
        labelled: whether there are labels.
        classes: names of the classes, by label; None if labels are only numbers.
    """

    labelled: bool = False
    classes: tuple[str, ...] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(
        self, index: int, channels: int, at_least: tuple[int, int] | None = None, nodata: float | None = None
    ) -> Picture:
        """The content of an image file, see ``decoding.read``; raises UnreadableImage."""

    def load(
        self,
        index: int,
        channels: int,
        dtype: torch.dtype | None = None,
        at_least: tuple[int, int] | None = None,
        numbers: Numbers | None = None,
        nodata: float | None = None,
        fill: Sequence[float] | None = None,
    ) -> Tensor:
        """Image ``(C, H, W)``, see ``decoding.decode``; raises UnreadableImage."""
        return self.read(index, channels, at_least, nodata).tensor(channels, dtype, numbers, fill)

    def label(self, index: int) -> int:
        """Class of an image, -1 if it has none; raises UnreadableImage."""
        return -1

    def all_labels(self) -> npt.NDArray[np.int64]:
        """Classes of all images ``(N,)``, see ``label``."""
        return np.array([self.label(index) for index in range(len(self))], np.int64)


class PackedNames(Sequence[str]):
    """An immutable sequence of file names.

    A million strings have a million reference counts, so a forked worker copies every page it merely reads: some 200 MB
    per worker for ImageNet. A single buffer stays shared.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])
