"""Is a contender right on the shapes that it is timed on? Only then does its time mean anything.

Ours keep to the error budget of ``crossmae_kernels.testing`` against float64, on a few images of the problem's shapes.
Everybody, ours too, must agree with eager PyTorch on the whole batch: what only goes wrong there goes wrong by far, so
the root mean square of the difference may be several times what eager PyTorch itself errs by.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.problem import (
    FORWARD,
    Arguments,
    Problem,
    Solver,
    gradients,
    joined,
    upstream_of,
)
from crossmae_kernels.testing import Error, budget, error, magnitude

FEW_IMAGES = 2
# How far others may be from eager PyTorch, in multiples of its own error and a rounding.
OTHERS = 8
SEED = 1


class WrongError(Exception):
    """A contender computes something else; the message says which result, and by how much."""


@dataclass(frozen=True)
class Check:
    """The result that came nearest to what is allowed."""

    result: str
    share: float
    """Of the allowed error."""


class Checks:
    """Judges each contender of each problem once, whatever the direction that is timed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._judge: Judge | None = None  # of the problem at hand alone: it holds what float64 makes of a model
        self._found: dict[tuple[str, str, str], Check] = {}

    def check(self, problem: Problem, name: str, solver: Solver) -> Check:
        """The result closest to what is allowed, or ``WrongError``."""
        key = problem.suite, problem.label, name
        if key not in self._found:
            if self._judge is None or self._judge.problem is not problem:
                self._judge = None
                self._judge = Judge(problem, self._device)
            self._found[key] = self._judge.check(name, solver)
        return self._found[key]

    def forget(self) -> None:
        """Drop what the last problem's judge holds, but no verdict."""
        self._judge = None


class Judge:
    """Judges the contenders of one problem."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.problem, self.device = problem, device
        self.eager = next(iter(problem.contenders.values()))()

    def check(self, name: str, solver: Solver) -> Check:
        """The closest result, or ``WrongError``."""
        verdicts = []
        if name in self.problem.ours:
            verdicts.append(self._on_few_images(solver))
        if not verdicts or self.problem.batch > FEW_IMAGES:
            verdicts.append(self._on_whole_batch(solver))
        return max(verdicts, key=lambda check: check.share)

    @functools.cached_property
    def _few(self) -> tuple[Arguments, Tensor | None, dict[str, Tensor], dict[str, Tensor]]:
        """Arguments of few images, the upstream gradient, and what eager PyTorch and float64 make of them."""
        few = self.problem.draw(min(FEW_IMAGES, self.problem.batch), SEED, self.device)
        upstream = upstream_of(self.eager, few, SEED + 1)
        exact = self._results(self.problem.exact(), _doubled(few), None if upstream is None else upstream.double())
        return few, upstream, self._results(self.eager, few, upstream), exact

    def _on_few_images(self, solver: Solver) -> Check:
        few, upstream, eager, exact = self._few
        found = self._results(solver, few, upstream)
        allowed = {name: self._budget(eager[name], exact[name]) for name in exact}
        return _judged(found, exact, allowed, rms_alone=self.problem.whole)

    def _budget(self, eager: Tensor, exact: Tensor) -> Error:
        """A scalar that eager PyTorch meets by luck may still be off by a rounding of the products' dtype."""
        allowed = budget(eager, exact)
        if exact.ndim:
            return allowed
        luck = torch.finfo(self.problem.dtype).eps * magnitude(exact).maximum
        return Error(allowed.maximum + luck, allowed.rms + luck)

    def _on_whole_batch(self, solver: Solver) -> Check:
        _, _, eager, exact = self._few
        roundoff = torch.finfo(self.problem.dtype).eps
        relative = {name: error(eager[name], t).rms / (magnitude(t).rms or 1) for name, t in exact.items()}
        arguments = self.problem.draw(self.problem.batch, SEED, self.device)
        upstream = upstream_of(self.eager, arguments, SEED + 1)
        truth = self._results(self.eager, arguments, upstream)
        found = self._results(solver, arguments, upstream)
        allowed = {}
        for name, tensor in truth.items():
            limit = OTHERS * (relative[name] + roundoff) * float(tensor.float().square().mean().sqrt())
            allowed[name] = Error(float("inf"), limit)
        return _judged(found, truth, allowed, rms_alone=True)

    def _results(self, solver: Solver, arguments: Arguments, upstream: Tensor | None) -> dict[str, Tensor]:
        """Output and every gradient by name; those of parameters as one vector."""
        if tuple(self.problem.work) == (FORWARD,):
            with torch.no_grad():
                return {"out": joined(solver(arguments))}
        found, grads = gradients(solver, arguments, upstream)
        names = [name for name, t in arguments.items() if t.requires_grad]
        results = {"out": joined(found).detach()}
        results |= {f"d {name}": gradient for name, gradient in zip(names, grads, strict=False)}
        if solver.parameters:
            results["d parameters"] = torch.cat([gradient.flatten() for gradient in grads[len(names) :]])
        return results


def _doubled(arguments: Arguments) -> Arguments:
    return {
        name: t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for name, t in arguments.items()
    }


def _judged(
    found: Mapping[str, Tensor], truth: Mapping[str, Tensor], allowed: Mapping[str, Error], rms_alone: bool
) -> Check:
    shares = {}
    for name, expected in truth.items():
        if found[name].shape != expected.shape:
            raise WrongError(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected.shape)}")
        for norm in ("rms",) if rms_alone else ("maximum", "rms"):
            value, limit = _difference(found[name], expected, norm), getattr(allowed[name], norm)
            share = value / limit if limit else 0.0 if value == 0 else float("inf")
            shares[f"{name}, {norm}"] = share if share == share else float("inf")  # NaN is worse than anything
    worst = max(shares, key=lambda name: shares[name])
    if shares[worst] > 1:
        raise WrongError(f"{worst}: error is {shares[worst]:.3g} of what is allowed")
    return Check(worst, shares[worst])


def _difference(found: Tensor, expected: Tensor, norm: str) -> float:
    """In double precision where the truth is, else in single: whole batches are large."""
    if expected.dtype == torch.float64:
        return float(getattr(error(found, expected), norm))
    difference = found.float() - expected.float()
    return float(difference.square().mean().sqrt())
