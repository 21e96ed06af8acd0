"""What all sources of images have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae.config import Numbers
from crossmae.training.data.values import Picture


class Source(ABC):
    """Images in a fixed order, each read on its own: any order of visits is as good as another.

    Attributes:
        labelled: whether there are labels at all.
        classes: what the labels are called, by label; None where they are numbers only.
    """

    labelled: bool = False
    classes: tuple[str, ...] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(
        self, index: int, channels: int, at_least: tuple[int, int] | None = None, nodata: float | None = None
    ) -> Picture:
        """What is in an image's file, see ``decoding.read``; raises UnreadableImage."""

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
