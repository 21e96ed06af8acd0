"""Fresh memory that is never zero by luck."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Fill every fresh allocation (``torch.empty`` and its relatives) with NaN, integers with their maximum.

    What a kernel forgets to write, or reads before it was written, then shows up. PyTorch does the filling: it is part
    of its deterministic mode.
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
