"""What all sources of images have in common."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


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
    def load(self, index: int, channels: int, dtype: torch.dtype, at_least: tuple[int, int] | None = None) -> Tensor:
        """Image ``(C, H, W)``, see ``decoding.decode``; raises UnreadableImage."""

    def label(self, index: int) -> int:
        """Class of an image, -1 if it has none; raises UnreadableImage."""
        return -1
