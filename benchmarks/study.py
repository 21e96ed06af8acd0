"""A small study: what decoders cost and what their encoders learn, over several seeds.

``python -m benchmarks.study --out study`` pretrains every variant on every task with every seed, one after the other or
``--jobs`` at a time, goes on where it was stopped, times a training step of all variants side by side, and writes
``study.json`` (everything that was measured), ``study.md`` and ``study.png``. ``crossmae demo`` is its small form.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from crossmae_kernels.command import run_command, stop_without

if __name__ == "__main__":
    stop_without("python -m benchmarks.study", "train")

from benchmarks.studies import FEATURES
from crossmae.files import make_folder
from crossmae.flops import decoder_macs
from crossmae.measure import interleaved_medians
from crossmae.model import MaskedAutoencoder
from crossmae.training.evaluation import baseline_accuracies
from crossmae.training.run import open_dataset
from crossmae.training.study import ALL_IMAGES, BATCH, MASK_RATIO, TASKS, Variant, evaluations, pretrained, recipe_of

STEPS, ROUNDS = 600, 15
VARIANTS = (
    Variant("MAE", family="mae", prediction_ratio=0.75),
    Variant("CrossMAE, .25"),
    Variant("CrossMAE, .75", prediction_ratio=0.75),
    Variant("CrossMAE, .25, one map", inter_block=False),
    Variant("CrossMAE, .75, one map", prediction_ratio=0.75, inter_block=False),
    Variant("CrossMAE, .25, with self-attention", self_attention=True),
)


def study(out: Path, seeds: int, steps: int, jobs: int) -> None:
    """Run what has not been run, measure, and write the report."""
    if min(seeds, jobs) < 1:
        raise ValueError(f"seeds and jobs must be positive, got {seeds} and {jobs}")
    make_folder(out)
    runs = [(variant, task, seed) for seed in range(seeds) for task in TASKS for variant in VARIANTS]
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(functools.partial(_one, out=out, steps=steps, threads=threads), runs))
    record = {
        "steps": steps,
        "batch": BATCH,
        "torch": torch.__version__,
        "seeds": seeds,
        "runs": [
            {**asdict(variant), "task": task, "seed": seed, **result}
            for (variant, task, seed), result in zip(runs, found, strict=True)
        ],
        "baselines": {task: _baselines(task, seeds) for task in TASKS},
        "costs": {task: _costs(task) for task in TASKS},
    }
    FEATURES.leave(record, out, "study")


def _one(run: tuple[Variant, str, int], out: Path, steps: int, threads: int) -> dict[str, float]:
    """Accuracies at the end of one run."""
    torch.set_num_threads(threads)
    variant, task, seed = run
    folder = out / "runs" / f"{task}-{seed}-{variant.name.replace(', ', '-').replace(' ', '-')}"
    (*_, last) = evaluations(pretrained(recipe_of(variant, task, seed, steps), folder), steps)
    return {name: last[name] for name in ("knn", "linear")}


def _baselines(task: str, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Accuracies of raw pixels, which no seed changes, and of untrained encoders."""
    recipe, images = open_dataset(recipe_of(VARIANTS[1], task, 0, 1))
    found = [baseline_accuracies(images, recipe.config(), seed, ALL_IMAGES) for seed in range(seeds)]
    return {
        "raw pixels": [found[0]["raw pixels"]],
        "untrained encoder": [accuracies["untrained encoder"] for accuracies in found],
    }


def _costs(task: str) -> dict[str, dict[str, float]]:
    """Of each variant: MACs of its decoder per image, and seconds of a training step's forward and backward pass."""
    steps, macs = {}, {}
    for variant in VARIANTS:
        config = replace(recipe_of(variant, task, 0, 1).config(), pixel_mean=None, pixel_std=None)
        model, images = MaskedAutoencoder(config), torch.randn(BATCH, config.channels, *config.image_size)
        steps[variant.name] = functools.partial(_step, model, images, variant.prediction_ratio)
        macs[variant.name] = decoder_macs(config, variant.prediction_ratio)
    seconds = interleaved_medians(steps, ROUNDS)
    return {name: {"decoder_macs": macs[name], "step_seconds": seconds[name]} for name in steps}


def _step(model: MaskedAutoencoder, images: Tensor, prediction_ratio: float) -> None:
    model.zero_grad(set_to_none=True)
    model(images, MASK_RATIO, prediction_ratio).loss.backward()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--out", default="study", help="folder of the runs and of the report")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    chosen = parser.parse_args(arguments)
    study(Path(chosen.out), chosen.seeds, chosen.steps, chosen.jobs)


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.study", main))
