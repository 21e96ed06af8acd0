"""Check every op on this machine: ``python -m crossmae_kernels.check [--json] [--interpret]``.

Runs each op forward and backward in every dtype and compares outputs and gradients with the reference in float64, by
the error budget of ``crossmae_kernels.testing``. Cross-attention is also compared with PyTorch's
``scaled_dot_product_attention`` with each backend forced, FlashAttention 2 to 4 and xformers, which are shown but not
judged. Exits with code 1 if one of our implementations exceeds its budget; refused calls are shown with the reason.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from crossmae_kernels.check.contenders import attend, attentions
from crossmae_kernels.runtime.device import interpreted, machine_refusals
from crossmae_kernels.runtime.dispatch import REFUSAL
from crossmae_kernels.testing import Draw, Judge, Problem
from crossmae_kernels.testing.budget import Results
from crossmae_kernels.testing.problems import tiny, vit_base

INTERPRETED = "triton, interpreted"
OURS = ("reference", "triton", INTERPRETED)


@dataclass(frozen=True)
class Line:
    """One implementation's verdict on one problem: its result closest to, or furthest beyond, the budget."""

    op: str
    problem: str
    dtype: str
    implementation: str
    verdict: str
    """``ok``, ``wrong``, ``baseline`` (eager PyTorch as it is on this machine), ``refused`` or ``missing``."""
    result: str = ""
    error: float | None = None
    budget: float | None = None
    reason: str = ""


def lines_of(problem: Problem, dtype: torch.dtype, interpret: bool) -> Iterator[Line]:
    """One line per implementation of a problem."""
    line: Callable[..., Line] = partial(Line, problem.op, problem.label, str(dtype).removeprefix("torch."))
    judge = Judge(problem, dtype)

    def judged(name: str, found: Results) -> Line:
        worst = judge.verdict(found)
        # Eager PyTorch sets the budget and may exceed it by chance; non-finite values are wrong all the same.
        limit, right = (float("inf"), "baseline") if name == "reference" else (1, "ok")
        verdict = right if worst.share <= limit and worst.share != float("inf") else "wrong"
        return line(name, verdict, f"{worst.result}, {worst.norm}", worst.error, worst.allowed)

    yield judged("reference", judge.solve(problem.by("reference")))

    def attempt(name: str, call: Callable[..., Any]) -> Line:
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                return judged(name, judge.solve(call))
        except Exception as failure:
            verdict = "refused" if REFUSAL in str(failure) else "wrong" if name in OURS else "missing"
            reasons = [str(failure).split(REFUSAL)[-1], *(str(warning.message) for warning in said)]
            reason = "; ".join(" ".join(text.split(" (Triggered")[0].split()) for text in reasons)
            return line(name, verdict, reason=reason)

    yield attempt(INTERPRETED if interpret else "triton", problem.by("triton"))
    if problem.op == "cross_attention" and not interpret:
        for name, attention in attentions().items():
            yield attempt(name, partial(attend, attention, num_heads=problem.options["num_heads"]))


def ours(line: Line) -> bool:
    """Whether a line belongs to one of this package's implementations."""
    return line.implementation in OURS


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per op, problem, dtype and implementation; returns 1 if one of ours is wrong.

    Raises RuntimeError if the interpreter is requested but cannot run.
    """
    parser = argparse.ArgumentParser(prog="python -m crossmae_kernels.check", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one list of records instead of a table")
    parser.add_argument("--interpret", action="store_true", help="run the kernels on the CPU, in Triton's interpreter")
    options = parser.parse_args(argv)
    if options.interpret:
        if "triton" in sys.modules and not interpreted():
            parser.error("--interpret comes too late, as Triton is already imported; set TRITON_INTERPRET=1")
        os.environ["TRITON_INTERPRET"] = "1"
        if refusals := machine_refusals(torch.device("cpu")):
            raise RuntimeError(f"--interpret: {'; '.join(refusals)}")
    on_gpu = torch.cuda.is_available() and not options.interpret
    device = torch.device("cuda" if on_gpu else "cpu")
    lines: list[Line] = []
    for problem in (vit_base if on_gpu else tiny)(Draw(device=device)):
        for dtype in problem.dtypes:
            for line in lines_of(problem, dtype, options.interpret):
                # Printed at once, so that an interrupted run leaves its results.
                shown = f"{',' if lines else '['}\n{json.dumps(asdict(line))}" if options.json else f"{text(line)}\n"
                print(shown, end="", flush=True)
                lines.append(line)
    if options.json:
        print("\n]")
    return int(any(line.verdict == "wrong" for line in lines if ours(line)))


def text(line: Line) -> str:
    """One line of the table."""
    head = f"{line.op:25}{line.problem:48}{line.dtype:9}{line.implementation:20}{line.verdict:9}"
    if line.error is None:
        return head + line.reason
    return f"{head}error {line.error:.2e}, budget {line.budget:.2e} ({line.result})"
