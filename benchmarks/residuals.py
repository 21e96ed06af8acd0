"""What a residual in 16 bits costs an encoder: CrossMAE in bfloat16, its residual in float32 and in autocast's dtype.

``python -m benchmarks.residuals --out residuals`` pretrains a tiny CrossMAE with either on every task with every seed,
from the same weights on the same batches, goes on where it was stopped, and writes ``residuals.json`` (everything that
was measured), ``residuals.md`` and ``residuals.png``.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from crossmae_kernels.command import run_command, stop_without

if __name__ == "__main__":
    stop_without("python -m benchmarks.residuals", "train")

from benchmarks.studies import RESIDUALS
from crossmae.files import make_folder
from crossmae.model.config import Residual
from crossmae.training.recipe import Recipe
from crossmae.training.study import BATCH, TASKS, Variant, evaluations, pretrained, recipe_of

STEPS = 200
JUDGES = ("knn", "linear")


def residual_recipe(residual: Residual, task: str, seed: int, steps: int) -> Recipe:
    """The run with one residual; all else is the same."""
    recipe = recipe_of(Variant("CrossMAE, .25"), task, seed, steps, "bfloat16")
    return replace(recipe, model_options={**recipe.model_options, "residual": residual})


def compare(out: Path, seeds: int, steps: int) -> None:
    """Run what has not been run, and write the report."""
    if seeds < 1:
        raise ValueError(f"seeds must be positive, got {seeds}")
    make_folder(out)
    runs = []
    for seed in range(seeds):
        for task in TASKS:
            for residual in get_args(Residual):
                folder = out / "runs" / f"{task}-{seed}-{residual}"
                (*_, last) = evaluations(pretrained(residual_recipe(residual, task, seed, steps), folder), steps)
                accuracies = {judge: last[judge] for judge in JUDGES}
                runs.append({"task": task, "residual": residual, "seed": seed, **accuracies})
    record = {"steps": steps, "batch": BATCH, "seeds": seeds, "torch": torch.__version__, "runs": runs}
    RESIDUALS.leave(record, out, "residuals")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.residuals", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--out", default="residuals", help="folder of the runs and of the report")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run")
    chosen = parser.parse_args(arguments)
    compare(Path(chosen.out), chosen.seeds, chosen.steps)


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.residuals", main))
