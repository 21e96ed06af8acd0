"""Tune every kernel on the shapes of the suites: ``python -m benchmarks.tune FORM``, with CROSSMAE_KERNELS_TUNE=all."""

import sys

import torch

from benchmarks.contest import FORMS
from benchmarks.suites import SUITES


def main() -> None:
    """Call every kernel once, forward and backward; its first call on a shape tunes it."""
    form = FORMS[sys.argv[1]]
    # The suite of steps repeats the decoder's shapes, that of launches those of fewer images than are worth tuning.
    for suite in (s for s in SUITES if s not in ("ceilings", "step", "launch")):
        for contest in SUITES[suite](form):
            print(f"{suite}: {contest.problem}", flush=True)
            try:
                solver = contest.contenders["fused"]()
                arguments = contest.draw(contest.batch, 0, form.device)
                leaves = [*solver.differentiated(arguments).values()]
                solver.gradients(arguments, leaves, solver.upstream(arguments, 1))
            except RuntimeError as failure:
                print(f"    {failure}", flush=True)
                if form.device.type == "cuda":
                    torch.cuda.synchronize()  # raises where the device does not answer any more


if __name__ == "__main__":
    main()
