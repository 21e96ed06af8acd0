"""Bytes and matrix work that kernels ask for, counted in Triton's interpreter.

The interpreter executes every load, store and matrix product of every program, so the counts are exact. Bytes are
those of unmasked elements: what is asked of the memory system, of which caches may serve a part.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder


@dataclass
class Traffic:
    """Totals over all kernels that ran."""

    loaded: int = 0
    """Bytes read from global memory."""
    stored: int = 0
    """Bytes written to global memory."""
    flops: int = 0
    """Multiplications and additions in matrix products, padding included."""

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.loaded + self.stored


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count what interpreted kernels do until the block ends."""
    traffic = Traffic()
    load, store, dot = (
        getattr(InterpreterBuilder, name) for name in ("create_masked_load", "create_masked_store", "create_dot")
    )

    def counted_load(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        tile = load(self, pointers, mask, *others)
        traffic.loaded += int(np.count_nonzero(mask.data)) * tile.data.itemsize
        return tile

    def counted_store(self: Any, pointers: Any, tile: Any, mask: Any, *others: Any) -> Any:
        traffic.stored += int(np.count_nonzero(mask.data)) * tile.data.itemsize
        return store(self, pointers, tile, mask, *others)

    def counted_dot(self: Any, left: Any, right: Any, *others: Any) -> Any:
        traffic.flops += 2 * left.data.size * right.data.shape[-1]
        return dot(self, left, right, *others)

    with mock.patch.multiple(
        InterpreterBuilder, create_masked_load=counted_load, create_masked_store=counted_store, create_dot=counted_dot
    ):
        yield traffic
