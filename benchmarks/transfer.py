"""What pretraining is worth to a classifier: fine-tuned from CrossMAE's encoder, from MAE's, and from scratch.

``python -m benchmarks.transfer --out transfer`` pretrains a tiny encoder of each family on every task with every seed,
fine-tunes each and one with random weights, all for as many steps on the same images, goes on where it was stopped, and
writes ``transfer.json`` (everything that was measured), ``transfer.md`` and ``transfer.png``.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from crossmae_kernels.command import run_command, stop_without

if __name__ == "__main__":
    stop_without("python -m benchmarks.transfer", "train")

from benchmarks.studies import TUNING
from crossmae.files import make_folder
from crossmae.training.data.bundled import bundled_set
from crossmae.training.finetuning.recipe import SCRATCH, FinetuningOptions, FinetuningRecipe
from crossmae.training.finetuning.run import finetune
from crossmae.training.monitor import LOG, read_log
from crossmae.training.study import TASKS, Variant, pretrained, recipe_of

STEPS, TUNING_STEPS, BATCH, EVALUATIONS = 600, 200, 128, 5
STARTS = {
    SCRATCH: None,
    "MAE": Variant("MAE", family="mae", prediction_ratio=0.75),
    "CrossMAE": Variant("CrossMAE, .25"),
}


def tuning_recipe(start: str, task: str, seed: int, checkpoint: str, steps: int, batch: int) -> FinetuningRecipe:
    """The run from one start: all see the same batches. Random weights have no deeper layers that know better."""
    recipe = recipe_of(Variant("CrossMAE"), task, seed, steps)
    return FinetuningRecipe(
        checkpoint=checkpoint,
        model=recipe.model,
        model_options={"channels": TASKS[task]["channels"]} if start == SCRATCH else {},
        data=recipe.data,
        steps=steps,
        batch_size=batch,
        learning_rate=2e-3,
        warmup=0.1,
        layer_decay=1.0 if start == SCRATCH else 0.75,
        drop_path=0.0,
        mixup=0.0,
        cutmix=0.0,
        erasing=0.0,
        precision="float32",
        seed=seed,
    )


def study(out: Path, seeds: int, steps: int, tuning_steps: int, batch: int) -> None:
    """Run what has not been run, and write the report."""
    if seeds < 1:
        raise ValueError(f"seeds must be positive, got {seeds}")
    make_folder(out)
    runs = []
    for seed in range(seeds):
        for task in TASKS:
            for start in STARTS:
                accuracies = _one(out, task, start, seed, steps, tuning_steps, batch)
                runs.append({"task": task, "start": start, "seed": seed, "accuracies": accuracies})
    numbers = {"steps": steps, "tuning_steps": tuning_steps, "batch": batch, "seeds": seeds}
    TUNING.leave({**numbers, "torch": torch.__version__, "runs": runs}, out, "transfer")


def _one(
    out: Path, task: str, start: str, seed: int, steps: int, tuning_steps: int, batch: int
) -> list[dict[str, float]]:
    """Accuracies on held-out images on the way of one fine-tuning run: ``step``, ``top1``, ``top5``."""
    variant, checkpoint = STARTS[start], SCRATCH
    if variant is not None:
        folder = out / "runs" / f"{task}-{seed}-{start}"
        pretrained(replace(recipe_of(variant, task, seed, steps), batch_size=batch), folder)
        checkpoint = str(folder / "model.safetensors")
    folder = out / "runs" / f"{task}-{seed}-from-{start}"
    if not any(entry["step"] == tuning_steps for entry in _accuracies(folder)):
        recipe = tuning_recipe(start, task, seed, checkpoint, tuning_steps, batch)
        finetune(recipe, _options(folder, task, tuning_steps, batch))
    return _accuracies(folder)


def _options(folder: Path, task: str, steps: int, batch: int) -> FinetuningOptions:
    """Evaluated as often for every task, whatever its epochs are."""
    every = steps / EVALUATIONS / (len(bundled_set(task)[0]) // batch)
    return FinetuningOptions(out=str(folder), keep_last=1, save_every=100.0 * steps, evaluate_every=every)


def _accuracies(folder: Path) -> list[dict[str, float]]:
    log = read_log(folder / LOG)
    return [{name: entry[name] for name in ("step", "top1", "top5")} for entry in log if "top1" in entry]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transfer", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--out", default="transfer", help="folder of the runs and of the report")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each pretraining")
    parser.add_argument("--tuning-steps", type=int, default=TUNING_STEPS, help="of each fine-tuning")
    parser.add_argument("--batch", type=int, default=BATCH, help="images of a step of either")
    chosen = parser.parse_args(arguments)
    study(Path(chosen.out), chosen.seeds, chosen.steps, chosen.tuning_steps, chosen.batch)


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.transfer", main))
