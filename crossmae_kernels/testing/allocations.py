"""Poison new memory, so that it is never zero by chance."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Fill every new allocation (``torch.empty`` and similar) with NaN, integers with their maximum.

    This exposes values that a kernel forgets to write or reads too early. PyTorch's deterministic mode does the
    filling.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
