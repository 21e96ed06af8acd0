"""How a kernel is judged: an error budget against float64, and fresh memory that is never zero by luck.

**Error budget.** Let ``exact`` be the result in float64 and ``eager`` what PyTorch's own operators make of the same
arguments in the dtype under test. A kernel may err, in the maximum and in the root mean square over all elements,

    ``error <= 2 * error(eager) + u * |exact|``,

where ``|exact|`` is the maximum or the root mean square of the exact result and ``u`` the dtype's unit roundoff
(2^-24, 2^-11, 2^-8 for float32, float16, bfloat16). The factor 2 lets a kernel round in other places than eager
PyTorch does, and add in another order. The band is the one rounding that nobody can avoid: a result x, however
computed, is stored with an error of up to ``u |x|``; it matters where eager happens to be exact, as with one key,
where softmax is 1. Nothing in the budget grows with sizes: what accumulates must accumulate no faster than eager's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Error:
    """Absolute error of a tensor, or what it may be."""

    maximum: float
    rms: float

    def within(self, budget: "Error") -> bool:
        """Whether both norms keep to the budget; NaN never does."""
        return self.maximum <= budget.maximum and self.rms <= budget.rms


def magnitude(tensor: Tensor) -> Error:
    """Maximum and root mean square of the absolute values; 0 of an empty tensor."""
    if not tensor.numel():
        return Error(0.0, 0.0)
    values = tensor.detach().double()
    return Error(values.abs().max().item(), values.square().mean().sqrt().item())


def error(actual: Tensor, exact: Tensor) -> Error:
    """Error of ``actual`` against ``exact``, float64 of the same shape."""
    if actual.shape != exact.shape or exact.dtype != torch.float64:
        raise ValueError(
            f"exact must be float64 of shape {tuple(actual.shape)}, got {exact.dtype} {tuple(exact.shape)}"
        )
    return magnitude(actual.detach().double() - exact)


def budget(eager: Tensor, exact: Tensor) -> Error:
    """What a kernel may err, given eager PyTorch's result in the dtype under test."""
    by_eager, size = error(eager, exact), magnitude(exact)
    roundoff = torch.finfo(eager.dtype).eps / 2
    return Error(2 * by_eager.maximum + roundoff * size.maximum, 2 * by_eager.rms + roundoff * size.rms)


def assert_within_budget(name: str, actual: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Raise ``AssertionError`` unless ``actual`` has eager's dtype and errs within the budget."""
    assert actual.dtype == eager.dtype, f"{name}: {actual.dtype}, eager has {eager.dtype}"
    found, allowed = error(actual, exact), budget(eager, exact)
    assert found.within(allowed), f"{name} errs by {found}, allowed is {allowed}"


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Fill every fresh allocation (``torch.empty`` and its relatives) with NaN, integers with their maximum.

    What a kernel forgets to write, or reads before it was written, then shows. PyTorch does the filling: it is part
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
