"""What a residual in 16 bits costs an encoder: CrossMAE in bfloat16, its residual in float32 and in autocast's dtype.

``python -m benchmarks.residuals --out residuals`` pretrains a tiny CrossMAE with either on every task with every seed,
from the same weights on the same batches, goes on where it was stopped, and writes ``residuals.json`` (everything that
was measured) and ``residuals.md``.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from tabulate import tabulate

from crossmae_kernels.command import run_command, stop_without

if __name__ == "__main__":
    stop_without("python -m benchmarks.residuals", "train")

from crossmae.files import make_folder, replacing
from crossmae.model.config import Residual
from crossmae.training.recipe import Recipe
from crossmae.training.study import BATCH, TASKS, Variant, evaluations, pretrained, recipe_of

STEPS = 200
RESIDUALS: tuple[Residual, ...] = get_args(Residual)
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
            for residual in RESIDUALS:
                folder = out / "runs" / f"{task}-{seed}-{residual}"
                (*_, last) = evaluations(pretrained(residual_recipe(residual, task, seed, steps), folder), steps)
                accuracies = {judge: last[judge] for judge in JUDGES}
                runs.append({"task": task, "residual": residual, "seed": seed, **accuracies})
    record = {"steps": steps, "batch": BATCH, "seeds": seeds, "torch": torch.__version__, "runs": runs}
    with replacing(out / "residuals.json") as beside:
        beside.write_text(json.dumps(record, indent=1), "utf-8")
    with replacing(out / "residuals.md") as beside:
        beside.write_text(table(record), "utf-8")
    print(table(record))


def table(record: Mapping[str, Any]) -> str:
    """Accuracies with their spread, and by how much they differ from seed to seed, as Markdown."""
    rows = []
    for task in dict.fromkeys(run["task"] for run in record["runs"]):
        found = {residual: _by_judge(record, task, residual) for residual in RESIDUALS}
        rows += [(f"{task}, {residual}", *map(_spread, found[residual])) for residual in RESIDUALS]
        pairs = zip(found["autocast"], found["float32"], strict=True)
        differences = [[a - b for a, b in zip(ours, others, strict=True)] for ours, others in pairs]
        rows.append((f"{task}, autocast less float32 of the same seed", *map(_spread, differences)))
    return (
        f"{record['steps']} steps of {record['batch']} images in bfloat16, {record['seeds']} seeds, mean and standard "
        f"deviation in percent; PyTorch {record['torch']} on a CPU. kNN and linear probe on frozen features of "
        "held-out images.\n\n"
        + tabulate(rows, ["residual", "kNN", "linear probe"], tablefmt="github", disable_numparse=True)
        + "\n"
    )


def _by_judge(record: Mapping[str, Any], task: str, residual: str) -> list[list[float]]:
    """Of each judge the percentages by seed."""
    runs = [run for run in record["runs"] if (run["task"], run["residual"]) == (task, residual)]
    return [[100 * run[judge] for run in runs] for judge in JUDGES]


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of a single run the value."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


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
