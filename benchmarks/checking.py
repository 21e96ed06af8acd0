"""Is a contender right on the shapes that it is timed on? Only then does its time mean anything.

Ours keep to the error budget of ``crossmae_kernels.testing`` against float64, on a few images of the problem's shapes.
All contenders, ours included, must agree with eager PyTorch on the whole batch: what goes wrong only there is far off,
so the root mean square of the difference may be several times that budget.
"""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.contest import FORWARD, Arguments, Contest, Solver, joined
from crossmae_kernels.testing import NORMS, Budget, Verdict, budgets, magnitude, worst
from crossmae_kernels.testing.problem import mapped

FEW_IMAGES = 2
# How far all may be from eager PyTorch on a whole batch, in multiples of the budget on few images.
WHOLE_BATCH = 8
SEED = 1

Results = Mapping[str, Tensor]


class WrongError(Exception):
    """A contender computes something else; the message says which result, and by how much."""


def check(contest: Contest, name: str, solver: Solver, device: torch.device) -> str:
    """What came nearest to what is allowed, or ``WrongError``; judged once, whatever the direction that is timed."""
    if name not in contest.checked:
        contest.checked[name] = _judge(contest, device).check(name, solver)
    return contest.checked[name]


@functools.lru_cache(maxsize=1)  # only of the contest at hand, since it holds a model's results in float64
def _judge(contest: Contest, device: torch.device) -> "Judge":
    return Judge(contest, device)


class Judge:
    """Judges the contenders of one contest."""

    def __init__(self, contest: Contest, device: torch.device) -> None:
        self.contest, self.device = contest, device
        self.eager = contest.contenders["reference"]()

    def check(self, name: str, solver: Solver) -> str:
        """What came nearest to what is allowed, or ``WrongError``."""
        if name == "reference":
            return self._finite(solver)
        ours = self.contest.ours(name)
        verdicts = [self._on_few_images(solver)] if ours else []
        if not ours or self.contest.batch > FEW_IMAGES:
            verdicts.append(self._on_whole_batch(solver))
        nearest = max(verdicts, key=lambda verdict: verdict.share)
        if nearest.share > 1:
            raise WrongError(str(nearest))
        return str(nearest)

    def _finite(self, solver: Solver) -> str:
        """Eager PyTorch sets the budget; its own error on this machine is not judged."""
        for name, result in self._results(solver, *self._few).items():
            if not result.isfinite().all():
                raise WrongError(f"{name} is not finite")
        return "finite"

    def _drawn(self, images: int) -> tuple[Arguments, Tensor]:
        """Arguments and the upstream gradient."""
        arguments = self.contest.draw(images, SEED, self.device)
        return arguments, self.eager.upstream(arguments, SEED + 1)

    @functools.cached_property
    def _few(self) -> tuple[Arguments, Tensor]:
        return self._drawn(min(FEW_IMAGES, self.contest.batch))

    @functools.cached_property
    def _allowed(self) -> tuple[Results, dict[str, Budget]]:
        """Results in float64 for a few images, and the budget."""
        few, upstream = self._few
        double = self.contest.exact() if self.contest.exact else self.eager
        exact = self._results(double, mapped(few, _doubled), upstream.double())
        return exact, budgets(lambda: self._results(self.eager, few, upstream), exact)

    def _on_few_images(self, solver: Solver) -> Verdict:
        found = self._results(solver, *self._few)  # first, since it may refuse, and the budget takes time
        exact, allowed = self._allowed
        _require_shapes(found, exact)
        return worst(found, exact, allowed, norms=("rms",) if self.contest.whole else NORMS)

    def _on_whole_batch(self, solver: Solver) -> Verdict:
        drawn = self._drawn(self.contest.batch)
        found, truth = self._results(solver, *drawn), self._results(self.eager, *drawn)
        exact, allowed = self._allowed
        _require_shapes(found, truth)
        verdicts = []
        for name, expected in truth.items():
            limit = WHOLE_BATCH * allowed[name].error.rms / (magnitude(exact[name]).rms or 1) * _rms(expected)
            verdicts.append(Verdict(name, "rms", _rms(found[name].float() - expected.float()), limit))
        return max(verdicts, key=lambda verdict: verdict.share)

    def _results(self, solver: Solver, arguments: Arguments, upstream: Tensor) -> Results:
        """Output and every gradient by name; those of parameters as one vector."""
        if tuple(self.contest.work) == (FORWARD,):
            with torch.no_grad():
                return {"out": joined(solver(arguments))}
        leaves = solver.differentiated(arguments)
        result, found = solver.gradients(arguments, [*leaves.values()], upstream)
        gradients = dict(zip(leaves, found, strict=True))
        of_parameters = [gradients.pop(name).flatten() for name in leaves if name.startswith("parameters[")]
        if of_parameters:
            gradients["parameters"] = torch.cat(of_parameters)
        return {"out": joined(result).detach()} | {f"d {name}": gradient for name, gradient in gradients.items()}


def _doubled(_: str, tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_(tensor.requires_grad) if tensor.is_floating_point() else tensor


def _require_shapes(found: Results, expected: Results) -> None:
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise WrongError(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")


def _rms(tensor: Tensor) -> float:
    """In single precision: whole batches are large."""
    return float(tensor.float().square().mean().sqrt())
