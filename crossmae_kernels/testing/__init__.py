"""How kernels are judged: problems, an error budget against float64, and poisoned memory."""

from crossmae_kernels.testing.allocations import poisoned_allocations
from crossmae_kernels.testing.budget import DRAWS, NORMS, Budget, Error, budgets, error, magnitude
from crossmae_kernels.testing.judge import Judge, Verdict, assert_within_budget, solve, worst
from crossmae_kernels.testing.problem import Draw, Problem

__all__ = [
    "DRAWS",
    "NORMS",
    "Budget",
    "Draw",
    "Error",
    "Judge",
    "Problem",
    "Verdict",
    "assert_within_budget",
    "budgets",
    "error",
    "magnitude",
    "poisoned_allocations",
    "solve",
    "worst",
]
