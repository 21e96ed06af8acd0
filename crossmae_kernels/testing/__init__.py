"""How kernels are judged: an error budget against float64, on memory that is never right by luck."""

from crossmae_kernels.testing.allocations import poisoned_allocations
from crossmae_kernels.testing.budget import (
    DRAWS,
    NORMS,
    Budget,
    Error,
    Verdict,
    assert_within_budget,
    budgets,
    error,
    judge,
    magnitude,
)

__all__ = [
    "DRAWS",
    "NORMS",
    "Budget",
    "Error",
    "Verdict",
    "assert_within_budget",
    "budgets",
    "error",
    "judge",
    "magnitude",
    "poisoned_allocations",
]
