"""Is a contender right on the shapes that it is timed on? Only then does its time mean anything.

Ours keep to the error budget of ``crossmae_kernels.testing`` against float64, on a few images of the problem's shapes.
Everybody, ours too, must agree with eager PyTorch on the whole batch: what only goes wrong there goes wrong by far, so
the root mean square of the difference may be several times that budget.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.contest import (
    FORWARD,
    Arguments,
    Contest,
    Solver,
    differentiated,
    gradients,
    joined,
    upstream_of,
)
from crossmae_kernels.testing import NORMS, Budget, budgets, magnitude, worst
from crossmae_kernels.testing.problem import mapped

FEW_IMAGES = 2
# How far everybody may be from eager PyTorch on a whole batch, in multiples of the budget on few images.
WHOLE_BATCH = 8
SEED = 1

Results = dict[str, Tensor]


class WrongError(Exception):
    """A contender computes something else; the message says which result, and by how much."""


@dataclass(frozen=True)
class Check:
    """The result that came nearest to what is allowed."""

    result: str
    share: float

    def __str__(self) -> str:
        return f"{self.result}: {self.share:.3g} of what is allowed"


class Checks:
    """Judges each contender of each contest once, whatever the direction that is timed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._judge: Judge | None = None  # of the contest at hand alone: it holds what float64 makes of a model
        self._found: dict[tuple[str, str, str], Check] = {}

    def check(self, contest: Contest, name: str, solver: Solver) -> Check:
        """The result closest to what is allowed, or ``WrongError``."""
        key = contest.suite, contest.problem, name
        if key not in self._found:
            if self._judge is None or self._judge.contest is not contest:
                self._judge = None
                self._judge = Judge(contest, self._device)
            self._found[key] = self._judge.check(name, solver)
        return self._found[key]


class Judge:
    """Judges the contenders of one contest."""

    def __init__(self, contest: Contest, device: torch.device) -> None:
        self.contest, self.device = contest, device
        self.eager = contest.contenders["reference"]()

    def check(self, name: str, solver: Solver) -> Check:
        """The closest result, or ``WrongError``."""
        if name == "reference":
            return self._finite(solver)
        checks = [self._on_few_images(solver)] if self.contest.ours(name) else []
        if not checks or self.contest.batch > FEW_IMAGES:
            checks.append(self._on_whole_batch(solver))
        return max(checks, key=lambda check: check.share)

    def _finite(self, solver: Solver) -> Check:
        """Eager PyTorch sets the budget; what it errs by as it is, on this machine, is not ours to answer for."""
        for name, result in self._results(solver, *self._posed).items():
            if not result.isfinite().all():
                raise WrongError(f"{name} is not finite")
        return Check("finite", 0.0)

    @functools.cached_property
    def _posed(self) -> tuple[Arguments, Tensor | None]:
        """Arguments of few images, and the upstream gradient."""
        few = self.contest.draw(min(FEW_IMAGES, self.contest.batch), SEED, self.device)
        return few, upstream_of(self.eager, few, SEED + 1)

    @functools.cached_property
    def _allowed(self) -> tuple[Results, dict[str, Budget]]:
        """What float64 makes of few images, and the budget."""
        few, upstream = self._posed
        double = self.contest.exact() if self.contest.exact else self.eager
        exact = self._results(double, _doubled(few), None if upstream is None else upstream.double())
        return exact, budgets(lambda: self._results(self.eager, few, upstream), exact)

    def _on_few_images(self, solver: Solver) -> Check:
        found = self._results(solver, *self._posed)  # first, since it may refuse, and the budget takes time
        exact, allowed = self._allowed
        _check_shapes(found, exact)
        verdict = worst(found, exact, allowed, norms=("rms",) if self.contest.whole else NORMS)
        return _passed(f"{verdict.result}, {verdict.norm}", verdict.share)

    def _on_whole_batch(self, solver: Solver) -> Check:
        arguments = self.contest.draw(self.contest.batch, SEED, self.device)
        upstream = upstream_of(self.eager, arguments, SEED + 1)
        found = self._results(solver, arguments, upstream)
        truth = self._results(self.eager, arguments, upstream)
        exact, allowed = self._allowed
        _check_shapes(found, truth)
        shares = {}
        for name, expected in truth.items():
            limit = WHOLE_BATCH * allowed[name].error.rms / (magnitude(exact[name]).rms or 1) * _rms(expected)
            difference = _rms(found[name].float() - expected.float())
            shares[name] = difference / limit if limit else float(difference != 0)
        furthest = max(shares, key=lambda name: shares[name] if shares[name] == shares[name] else float("inf"))
        return _passed(f"{furthest}, rms", shares[furthest])

    def _results(self, solver: Solver, arguments: Arguments, upstream: Tensor | None) -> Results:
        """Output and every gradient by name; those of parameters as one vector."""
        if tuple(self.contest.work) == (FORWARD,):
            with torch.no_grad():
                return {"out": joined(solver(arguments))}
        wanted = differentiated(solver, arguments)
        found, grads = gradients(solver, arguments, [*wanted.values()], upstream)
        by_name = dict(zip(wanted, grads, strict=True))
        of_parameters = [by_name.pop(name).flatten() for name in [*by_name] if name.startswith("parameters[")]
        results = {"out": joined(found).detach()} | {f"d {name}": gradient for name, gradient in by_name.items()}
        return results | ({"d parameters": torch.cat(of_parameters)} if of_parameters else {})


def _doubled(arguments: Arguments) -> Arguments:
    def doubled(_: str, tensor: Tensor) -> Tensor:
        wanted = tensor.requires_grad
        return tensor.detach().double().requires_grad_(wanted) if tensor.is_floating_point() else tensor

    return mapped(arguments, doubled)


def _check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise WrongError(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")


def _passed(result: str, share: float) -> Check:
    check = Check(result, share)
    if not share <= 1:
        raise WrongError(f"{result}: error is {share:.3g} of what is allowed")
    return check


def _rms(tensor: Tensor) -> float:
    """In single precision: whole batches are large."""
    return float(tensor.float().square().mean().sqrt())
