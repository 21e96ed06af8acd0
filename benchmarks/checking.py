"""Is a contender right on the shapes that it is timed on?

Ours keep to the error budget of ``crossmae_kernels.testing`` against float64, on a few images of the problem's shapes.
All contenders, ours included, must agree with eager PyTorch on the whole batch.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Call, Contest, upstream_of
from crossmae.benchmark import checking
from crossmae.benchmark.checking import FEW_IMAGES, WrongError
from crossmae_kernels.testing import Judge
from crossmae_kernels.testing.judge import solve
from crossmae_kernels.testing.problem import named

SEED = 1


def check(contest: Contest, name: str, call: Call, device: torch.device) -> str:
    """What came nearest to what is allowed, or ``WrongError``; judged once, whatever the direction that is timed."""
    if name not in contest.checked:
        joined = _joined(call)
        strict, whole = _judges(contest, device)
        found = whole.require(_results(contest, joined, device))
        if name.startswith("fused"):
            verdict = strict.verdict(strict.solve(joined))
            if verdict.share > 1:
                raise WrongError(f"wrong: {verdict}")
            found = str(verdict)
        contest.checked[name] = found
    return contest.checked[name]


@functools.lru_cache(maxsize=1)  # only of the contest at hand, since it holds results of a whole batch
def _judges(contest: Contest, device: torch.device) -> tuple[Judge, checking.Judge]:
    reference = _joined(contest.contenders["reference"]())
    few = contest.draw(SEED, device, min(FEW_IMAGES, contest.batch))
    strict = Judge(few, contest.dtype, reference, reference)
    eager = solve(few.rounded(contest.dtype), reference, contest.dtype)
    return strict, checking.Judge(_results(contest, reference, device), eager, strict.exact, contest.dtype)


def _results(contest: Contest, call: Call, device: torch.device) -> dict[str, Tensor]:
    """Output and every gradient by name, on the whole batch. Arguments are large, so nobody keeps them."""
    leaves = contest.draw(SEED, device).leaves(contest.dtype)
    out = call(**leaves)
    trained = {f"d {name}": leaf for name, leaf in named(leaves) if leaf.requires_grad}
    gradients = torch.autograd.grad(out, [*trained.values()], upstream_of([out], SEED)[0], materialize_grads=True)
    return {"out": out.detach(), **dict(zip(trained, gradients, strict=True))}


def _joined(call: Call) -> Call:
    """With several outputs stacked: the release has a tensor for each mix where ours has one."""

    def joined(**arguments: Any) -> Tensor:
        result = call(**arguments)
        return result if isinstance(result, Tensor) else torch.stack(list(result))

    return joined
