"""Is a contender right on the shapes that it is timed on? Only then does its time mean anything.

Ours keep to the error budget of ``crossmae_kernels.testing`` against float64, on a few images of the problem's shapes.
Everybody, ours too, must agree with eager PyTorch on the whole batch: what only goes wrong there goes wrong by far, so
the root mean square of the difference may be several times that budget.
"""

import functools
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
from crossmae_kernels.testing import NORMS, Budget, budgets, magnitude
from crossmae_kernels.testing import worst as worst_of

FEW_IMAGES = 2
# How far everybody may be from eager PyTorch on a whole batch, in multiples of the budget on few images.
WHOLE_BATCH = 8
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
        # What eager PyTorch errs by as it is, on this machine, is not ours to answer for.
        if name in self.problem.ours and name != next(iter(self.problem.contenders)):
            verdicts.append(self._on_few_images(solver))
        if not verdicts or self.problem.batch > FEW_IMAGES:
            verdicts.append(self._on_whole_batch(solver))
        return max(verdicts, key=lambda check: check.share)

    @functools.cached_property
    def _few(self) -> tuple[Arguments, Tensor | None, dict[str, Tensor], dict[str, Budget]]:
        """Arguments of few images, the upstream gradient, what float64 makes of them, and the budget."""
        few = self.problem.draw(min(FEW_IMAGES, self.problem.batch), SEED, self.device)
        upstream = upstream_of(self.eager, few, SEED + 1)
        exact = self._results(self.problem.exact(), _doubled(few), None if upstream is None else upstream.double())
        return few, upstream, exact, budgets(lambda: self._results(self.eager, few, upstream), exact)

    def _on_few_images(self, solver: Solver) -> Check:
        few, upstream, exact, allowed = self._few
        found = self._results(solver, few, upstream)
        for name, truth in exact.items():
            _check_shape(name, found[name], truth)
        worst = worst_of(found, exact, allowed, norms=("rms",) if self.problem.whole else NORMS)
        return _passed(f"{worst.result}, {worst.norm}", worst.share)

    def _on_whole_batch(self, solver: Solver) -> Check:
        _, _, exact, allowed = self._few
        relative = {name: allowed[name].error.rms / (magnitude(truth).rms or 1) for name, truth in exact.items()}
        arguments = self.problem.draw(self.problem.batch, SEED, self.device)
        upstream = upstream_of(self.eager, arguments, SEED + 1)
        truth = self._results(self.eager, arguments, upstream)
        found = self._results(solver, arguments, upstream)
        shares = {}
        for name, expected in truth.items():
            _check_shape(name, found[name], expected)
            limit = WHOLE_BATCH * relative[name] * _rms(expected)
            difference = _rms(found[name].float() - expected.float())
            shares[name] = difference / limit if limit else float(difference != 0)
        worst = max(shares, key=lambda name: shares[name] if shares[name] == shares[name] else float("inf"))
        return _passed(f"{worst}, rms", shares[worst])

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


def _check_shape(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise WrongError(f"{name} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}")


def _passed(result: str, share: float) -> Check:
    if not share <= 1:
        raise WrongError(f"{result}: error is {share:.3g} of what is allowed")
    return Check(result, share)


def _rms(tensor: Tensor) -> float:
    """In single precision: whole batches are large."""
    return float(tensor.float().square().mean().sqrt())
