"""A training step on a CPU: CrossMAE, the release's formulation of it, and MAE, side by side.

``python -m benchmarks.cpu`` prints, for the whole model and for the decoder alone, a forward and a backward pass in
float32 and under autocast to bfloat16: times, the rate of FLOPs as a share of what this CPU reaches in a square
product, and speed-ups over the release's formulation and over MAE beside the ratio of FLOPs. ``--compile`` compiles all
of them. AdamW is left out: it is the same for all, in either precision.

Contenders run in turn and the shortest of the rounds counts. On one thread the clock is the process's own CPU time,
which other work on the machine lengthens only as far as it slows memory down; on several it is the wall clock.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contest import BOTH, CPU, MASK_RATIO, Contest, Form, Solver, compiled
from benchmarks.suites.models import decoder_contest, model_contest
from benchmarks.timing import passes
from crossmae_kernels.command import run_command

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS, RELEASE, MAE = "CrossMAE", "release", "MAE"
SQUARE = 2048  # of the product whose rate the others are compared with


def competing(part: str, form: Form) -> dict[str, tuple[Contest, Solver]]:
    """Ours, the release's and MAE's ``model`` or ``decoder``."""
    size, batch = form.sizes[0], form.batches[0]
    if part == "model":
        ours, mae = (model_contest(part, form, size, batch, BOTH, family) for family in ("crossmae", "mae"))
    else:
        ours = decoder_contest(part, form, size, batch, decisive=True)
        mae = decoder_contest(part, form, size, batch, "mae", 8, MASK_RATIO)
    chosen = {OURS: (ours, "reference"), RELEASE: (ours, "release"), MAE: (mae, "reference")}
    # Each op is served as it is on a CPU by default.
    return {
        name: (contest, replace(contest.contenders[contender](), implementation="auto"))
        for name, (contest, contender) in chosen.items()
    }


def shortest(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each call's shortest round, after one of warm-up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = clock()
            call()
            if number:
                found[name] = min(found[name], clock() - begun)
    return found


def product_rate(dtype: torch.dtype) -> float:
    """FLOP a second of a square product."""
    x = torch.randn(SQUARE, SQUARE).to(dtype)
    return 2 * SQUARE**3 / shortest({"product": lambda: x @ x}, 5)["product"]


def flops_of(contest: Contest, solver: Solver) -> int:
    """Of a forward and a backward pass, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        solver(contest.draw(contest.batch, 0, CPU)).sum().backward()
    return counter.get_total_flops()


def measure(part: str, form: Form, compiles: bool) -> list[list[str]]:
    """A row of the table for each contender."""
    found = competing(part, form)
    flops = {name: flops_of(*contender) for name, contender in found.items()}
    calls = {}
    for name, (contest, solver) in found.items():
        timed = compiled(partial(replace, solver), {"dynamic": False}) if compiles else solver
        (calls[name],) = passes(contest, timed, BOTH, CPU)
    seconds, rate = shortest(calls, form.rounds), product_rate(form.dtype)
    return [
        [
            part,
            str(form.dtype).removeprefix("torch."),
            name,
            f"{flops[name] / 1e9:,.0f}",
            f"{1e3 * seconds[name]:,.0f}",
            f"{flops[name] / seconds[name] / rate:.0%} of {rate / 1e9:,.0f}",
            f"{seconds[RELEASE] / seconds[name]:.2f}" if name != MAE else "",
            f"{seconds[MAE] / seconds[name]:.2f}",
            f"{flops[MAE] / flops[name]:.2f}",
        ]
        for name in calls
    ]


HEADERS = [
    "part",
    "precision",
    "contender",
    "GFLOP",
    "ms",
    "share of the product rate, GFLOP/s",
    "speed-up over the release's formulation",
    "speed-up over MAE",
    "times fewer FLOPs than MAE",
]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--size", default="base_patch16", help="end of a model's name (%(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile all contenders")
    parser.add_argument("--part", choices=("model", "decoder"), action="append", help="may be repeated (both)")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="may be repeated (both)")
    chosen = parser.parse_args()
    if min(chosen.batch, chosen.threads, chosen.rounds) < 1:
        raise ValueError(
            f"batch, threads and rounds must be positive, got {chosen.batch}, {chosen.threads}, {chosen.rounds}"
        )
    torch.set_num_threads(chosen.threads)
    print(
        f"{'Compiled' if chosen.compile else 'Eager'}, ViT {chosen.size}, batch {chosen.batch}, {chosen.threads} "
        f"threads, {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}\n",
        flush=True,
    )
    for part in chosen.part or ("model", "decoder"):
        for dtype in chosen.dtype or DTYPES:
            form = Form("cpu", CPU, DTYPES[dtype], (chosen.size,), (chosen.batch,), {}, chosen.rounds, 0)
            rows = measure(part, form, chosen.compile)
            print(tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True), end="\n\n", flush=True)


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.cpu", main))
