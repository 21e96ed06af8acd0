"""Solve problems, and judge whether results are within the error budget."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.testing.allocations import poisoned_allocations
from crossmae_kernels.testing.budget import NORMS, Budget, Results, budgets, error
from crossmae_kernels.testing.problem import Problem, named


@dataclass(frozen=True)
class Verdict:
    """The result, and its norm, that is closest to its budget or furthest beyond."""

    result: str
    norm: str
    error: float
    allowed: float

    @property
    def share(self) -> float:
        """Error as a share of the allowed one; infinite if either is not finite."""
        if self.error == 0:
            return 0.0
        share = self.error / self.allowed if 0 < self.allowed < float("inf") else float("inf")
        return share if share == share else float("inf")

    def __str__(self) -> str:
        return f"{self.result} errs by {self.error:.3g} in the {self.norm}, allowed is {self.allowed:.3g}"


def worst(found: Results, exact: Results, allowed: Mapping[str, Budget], norms: tuple[str, ...] = NORMS) -> Verdict:
    """The worst of all results; a share above 1 is wrong."""
    verdicts = []
    for name, truth in exact.items():
        erred = error(found[name], truth)
        verdicts += [Verdict(name, norm, getattr(erred, norm), getattr(allowed[name].error, norm)) for norm in norms]
    return max(verdicts, key=lambda verdict: verdict.share)


def assert_within_budget(found: Results, exact: Results, allowed: Mapping[str, Budget]) -> None:
    """Raise ``AssertionError`` unless all results have eager's dtypes and are within their budgets."""
    for name in exact:
        dtype = allowed[name].dtype
        assert found[name].dtype == dtype, f"{name}: {found[name].dtype}, eager has {dtype}"
    verdict = worst(found, exact, allowed)
    assert verdict.share <= 1, verdict


def outputs_of(result: Tensor | Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Results of a call by name: ``out``, or, if there are several, those that are not None."""
    return dict(named({"out": result}))


def upstream_of(outputs: Mapping[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """A random gradient for each output: nonzero multiples of 1/32 up to 2, exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randint(-32, 32, out.shape, generator=generator) for name, out in outputs.items()}
    return {name: (2 * drawn[name] + 1).to(out.device, out.dtype) / 32 for name, out in outputs.items()}


def gradients_of(
    outputs: Mapping[str, Tensor], leaves: Mapping[str, Any], upstream: Mapping[str, Tensor], retain_graph: bool = False
) -> dict[str, Tensor]:
    """The gradient of every leaf that requires one, named ``d`` and its name; 0 if no output depends on it."""
    trained = {f"d {name}": leaf for name, leaf in named(leaves) if leaf.requires_grad}
    if not trained:
        return {}
    reached = [name for name, out in outputs.items() if out.requires_grad]
    found = torch.autograd.grad(
        [outputs[name] for name in reached],
        list(trained.values()),
        [upstream[name] for name in reached],
        retain_graph=retain_graph,
        materialize_grads=True,
    )
    return dict(zip(trained, found, strict=True))


def solve(
    problem: Problem,
    call: Callable[..., Any],
    dtype: torch.dtype,
    frozen: Collection[str] = (),
    autocast: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Outputs, and gradients of all arguments except the ``frozen`` ones.

    Args:
        problem: provides the arguments.
        call: takes them by name.
        dtype: of the arguments.
        frozen: names of arguments without gradient.
        autocast: dtype of autocast in the forward pass.
    """
    leaves = problem.leaves(dtype, frozen)
    with problem.in_form():
        with nullcontext() if autocast is None else torch.autocast(problem.device.type, autocast):
            outputs = outputs_of(call(**leaves))
        gradients = gradients_of(outputs, leaves, upstream_of(outputs))
    return {name: out.detach() for name, out in outputs.items()} | gradients


class Judge:
    """Judges solutions of one problem in one dtype."""

    def __init__(
        self,
        problem: Problem,
        dtype: torch.dtype,
        oracle: Callable[..., Any] | None = None,
        eager: Callable[..., Any] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Compute the exact results and their error budgets.

        Args:
            problem: what is to be solved.
            dtype: of the arguments.
            oracle: solves it in float64; by default the reference.
            eager: solves it with PyTorch's operators; by default the reference.
            autocast: kernels and eager run under autocast to this dtype.
        """
        self.problem, self.dtype, self.autocast = problem, dtype, autocast
        rounded = problem.rounded(dtype)
        oracle, eager = oracle or problem.by("reference"), eager or problem.by("reference")
        # uint8 images have no rows in float64, whatever dtype is requested from the reference.
        self.exact = {name: t.double() for name, t in solve(rounded, oracle, torch.float64).items()}
        self.allowed = budgets(lambda: solve(rounded, eager, dtype, autocast=autocast), self.exact)

    def solve(self, call: Callable[..., Any]) -> dict[str, Tensor]:
        """Results of ``call`` on the problem, with fresh allocations poisoned."""
        with poisoned_allocations():
            return solve(self.problem, call, self.dtype, autocast=self.autocast)

    def verdict(self, found: Results, norms: tuple[str, ...] = NORMS) -> Verdict:
        """The worst result."""
        return worst(found, self.exact, self.allowed, norms)

    def check(self, call: Callable[..., Any]) -> dict[str, Tensor]:
        """Solve the problem; ``AssertionError`` unless it has eager's results and they are within the budget."""
        found = self.solve(call)
        assert found.keys() == self.exact.keys(), f"results are {[*found]}, expected {[*self.exact]}"
        assert_within_budget(found, self.exact, self.allowed)
        return found
