"""A small study: what decoders cost and what their encoders learn, over several seeds.

``python -m benchmarks.study --out study`` pretrains every variant on every task with every seed, one after the other or
``--jobs`` at a time, goes on where it was stopped, times a training step of all variants side by side, and writes
``study.json`` (everything that was measured), ``study.md`` and ``study.png``.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.command import run_command, stop_without

if __name__ == "__main__":
    stop_without("python -m benchmarks.study", "train")

from benchmarks.report.study import draw, table
from crossmae.files import make_folder, replacing
from crossmae.flops import decoder_macs
from crossmae.measure import interleaved_medians
from crossmae.model import MaskedAutoencoder
from crossmae.training.data.config import DataConfig
from crossmae.training.evaluation import baseline_accuracies
from crossmae.training.monitor import LOG, read_log
from crossmae.training.recipe import Recipe, RunOptions
from crossmae.training.run import open_dataset, pretrain

STEPS, BATCH = 600, 128
ALL_IMAGES = 100_000
ROUNDS = 15


@dataclass(frozen=True)
class Variant:
    """A decoder, by what differs from the tiny CrossMAE."""

    name: str
    family: str = "crossmae"
    prediction_ratio: float = 0.25
    inter_block: bool = True
    self_attention: bool = False


VARIANTS = (
    Variant("MAE", family="mae", prediction_ratio=0.75),
    Variant("CrossMAE, .25"),
    Variant("CrossMAE, .75", prediction_ratio=0.75),
    Variant("CrossMAE, .25, one map", inter_block=False),
    Variant("CrossMAE, .75, one map", prediction_ratio=0.75, inter_block=False),
    Variant("CrossMAE, .25, with self-attention", self_attention=True),
)

TASKS: dict[str, dict[str, Any]] = {
    # Much of a scanned digit is blank, and a blank patch, normalised, is rounding noise.
    "digits": {"channels": 1, "normalize_targets": False},
    "photographs": {"channels": 3},
}


def recipe_of(variant: Variant, task: str, seed: int, steps: int) -> Recipe:
    """The run of one variant on one task: the tiny models, which all have the same encoder."""
    options = dict(TASKS[task])
    if variant.family == "crossmae":
        options["decoder_self_attention"] = variant.self_attention
        if not variant.inter_block:
            options["feature_maps"] = None
    return Recipe(
        model=f"{variant.family}_vit_tiny_patch4",
        model_options=options,
        data=DataConfig(source=task, crop_scale=None, flip=False, workers=0),
        prediction_ratio=variant.prediction_ratio,
        steps=steps,
        batch_size=BATCH,
        learning_rate=2e-3,
        warmup=0.1,
        precision="float32",
        seed=seed,
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
    with replacing(out / "study.json") as beside:
        beside.write_text(json.dumps(record, indent=1), "utf-8")
    with replacing(out / "study.md") as beside:
        beside.write_text(table(record), "utf-8")
    draw(record, out / "study.png")
    print(table(record))


def _one(run: tuple[Variant, str, int], out: Path, steps: int, threads: int) -> dict[str, float]:
    """Accuracies at the end of one run, which is taken up where it was."""
    torch.set_num_threads(threads)
    variant, task, seed = run
    folder = out / "runs" / f"{task}-{seed}-{variant.name.replace(', ', '-').replace(' ', '-')}"
    done = _final(folder, steps)
    if done is None:
        never = 10.0 * steps
        options = RunOptions(
            out=str(folder),
            save_every=30,
            keep_last=1,
            probe_every=never,
            probe_images=ALL_IMAGES,
            pictures_every=never,
        )
        pretrain(recipe_of(variant, task, seed, steps), options)
        done = _final(folder, steps)
    assert done is not None
    return done


def _final(folder: Path, steps: int) -> dict[str, float] | None:
    """Accuracies after the last step, if there are any."""
    entries = [e for e in read_log(folder / LOG) if "knn" in e and e["step"] == steps]
    return {name: entries[-1][name] for name in ("knn", "linear")} if entries else None


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
    model(images, 0.75, prediction_ratio).loss.backward()


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
