"""One small case of each kernel, to run under NVIDIA's compute-sanitizer; ``python -m benchmarks.gpu`` does.

Results are not looked at: the sanitizer watches what the kernels read and write.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from crossmae_kernels.command import run_command
from crossmae_kernels.runtime.device import limits
from crossmae_kernels.testing import Draw, Problem, problems
from crossmae_kernels.testing.judge import solve

# Only their threads read and write shared memory; on Hopper and Blackwell others' tensor cores do so too, out of step
# with threads, and racecheck may see races there that are none.
IN_ORDER = ("fold_norm", "mix_feature_maps", "gather_patches", "patch_loss")


def cases(draw: Draw, persistent: bool) -> list[Problem]:
    """Problems that launch every kernel between them, if programs that stay (``persistent``) are served too.

    Extents are not multiples of tiles, so that every mask has something to hide.
    """
    rows, widths = (2, 5), (32, 48)
    return [
        problems.cross_attention(draw, 2, 5, 7, 2, 16, table=4),
        problems.cross_attention(draw, 1, 70, 1025, 1, 16),
        problems.fold_norm(draw, 20, 32),
        problems.in_form(problems.norm_linear(draw, rows, *widths, "gelu"), "tiled"),
        *([problems.in_form(problems.norm_linear(draw, rows, *widths), "persistent")] if persistent else []),
        *(problems.in_form(problems.linear_residual(draw, rows, *widths), form) for form in problems.FORMS),
        *(problems.in_form(problems.mlp(draw, rows, *widths), form) for form in ("single", "tiled")),
        *(problems.mix_feature_maps(draw, rows, 3, 2, 24, normalize=normalize) for normalize in (True, False)),
        problems.gather_patches(draw, 2, 8, 5, (2, 3)),
        problems.patch_loss(draw, 2, 4, 5, (2, 3)),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run each case forward and backward in bfloat16."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitizer", description=main.__doc__)
    parser.add_argument("--in-order", action="store_true", help="only kernels for racecheck")
    chosen = parser.parse_args(argv)
    device = torch.device("cuda")
    for problem in cases(Draw(device=device), limits(device).multiplies_from_shared_memory):
        if problem.op in IN_ORDER or not chosen.in_order:
            print(problem, flush=True)
            solve(problem, problem.by("triton"), torch.bfloat16)
            torch.cuda.synchronize()  # so that an error stands below its case


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.sanitizer", main))
