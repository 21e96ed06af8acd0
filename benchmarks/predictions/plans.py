"""Tables of ``crossmae plan`` in README.md and docs/: ``python -m benchmarks.predictions.plans``.

They are made from ``steps.json``, which ``--anew`` predicts again first, in some ten minutes. What a GPU measured takes
the place of README's predictions.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.predictions import runs
from benchmarks.records import ROOT
from benchmarks.report import insert, newest_of_gpus
from crossmae.planning.cost import RUNS, Cost, Step, costs, counterpart, interval, summed
from crossmae.planning.fleet import Fleet
from crossmae.planning.report import span, table
from crossmae.planning.step import predict_step
from crossmae.training.data.config import DataConfig
from crossmae.training.plan import make_plan
from crossmae.training.recipe import IMAGENET_IMAGES, Recipe, read_recipes
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.prediction import accuracy
from crossmae_kernels.command import run_command

STEPS = Path(__file__).parent / "steps.json"
RESULTS = ROOT / "benchmarks" / "results"
GPUS = {"a100": "A100", "h100": "H100", "rtx4090": "RTX 4090"}
RECIPES, MICRO_BATCH = ["vit_base", "gamma25"], 256
COCO_IMAGES = 118_287
"""Of train2017."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables into README.md and docs/, from steps.json or, with ``--anew``, from new predictions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions.plans", description=__doc__)
    parser.add_argument("--anew", action="store_true", help="predict again, which takes minutes")
    if parser.parse_args(argv).anew:
        STEPS.write_text(json.dumps(predict(), indent=1) + "\n", "utf-8")
    steps = json.loads(STEPS.read_text("utf-8"))
    insert(ROOT / "README.md", "gpu", on_gpus(steps, RESULTS, ROOT))
    insert(ROOT / "docs" / "planning.md", "example", example(steps))
    insert(ROOT / "docs" / "planning.md", "epochs", epochs(steps))
    insert(ROOT / "docs" / "pretraining.md", "hours", hours(steps))


def recipe() -> Recipe:
    """The planned recipe, with micro-batches that fit every GPU here."""
    settings = read_recipes(RECIPES)
    return Recipe(**{**settings, "data": DataConfig(**settings["data"]), "micro_batch": MICRO_BATCH})


def predict() -> dict[str, Any]:
    """Everything that needs a compiler: steps of both models on each GPU, and the paper's epochs."""
    found: dict[str, Any] = {"minutes": [runs.predicted_minutes(epoch) for epoch in runs.EPOCHS], "gpus": {}}
    for device in GPUS:
        print(device, file=sys.stderr, flush=True)
        predicted = costs(recipe(), IMAGENET_IMAGES, Fleet(device, 8))
        found["gpus"][device] = {
            cost.plan.recipe.model: {
                "step": asdict(cost.one),
                "plain PyTorch": asdict(_plain(cost)),
                "parameters": cost.parameters,
                "largest": cost.largest,
                "kept": cost.kept,
                "passes otherwise": cost.passes_otherwise,
                "kept otherwise": cost.kept_otherwise,
            }
            for cost in predicted
        }
    return found


def _plain(cost: Cost) -> Step:
    """The same without kernels."""
    device, config = DEVICES[cost.fleet.device], cost.plan.config
    mask_ratio, prediction_ratio = cost.plan.ratios(0)
    return summed(
        predict_step(
            config, device, MICRO_BATCH, mask_ratio=mask_ratio, prediction_ratio=prediction_ratio,
            formulation="reference",
        )
    )  # fmt: skip


def cost_of(steps: dict[str, Any], recipe: Recipe, images: int, fleet: Fleet) -> Cost:
    """The cost of a recipe whose step is known."""
    known = steps["gpus"][fleet.device][recipe.model]
    plan = make_plan(recipe, images, fleet.gpus)
    counts = known["parameters"], known["largest"], known["kept"]
    return Cost(plan, fleet, Step(**known["step"]), *counts, known["passes otherwise"], known["kept otherwise"])


def on_gpus(steps: dict[str, Any], results: Path, folder: Path) -> str:
    """The newest record of a GPU, for a page in ``folder``; predictions if there is none."""
    if measured := newest_of_gpus(results, folder):
        return measured
    rows = []
    for model, known in zip(("CrossMAE", "MAE"), (recipe().model, counterpart(recipe()).model), strict=True):
        for name, step in (("kernels", "step"), ("plain PyTorch at best", "plain PyTorch")):
            rows.append([f"{model}, {name}", *(_of_decoder(steps["gpus"][device][known][step]) for device in GPUS)])
    headers = [f"ViT-B's decoder, {MICRO_BATCH} images, bfloat16", *(f"{name}, ms" for name in GPUS.values())]
    times = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    note = (
        f"Predicted, forward and backward pass, for recipe `{'+'.join(RECIPES)}`; nothing is measured. {accuracy()} "
        "The kernels' implementations are chosen by fixed rules here; a GPU times them, library products included, and "
        "uses the fastest. Plain PyTorch is the best the GPU allows: the paper's epochs took "
        f"{RUNS:.2g} times as long "
        "([docs/planning.md](docs/planning.md))."
    )
    return f"{times}\n\n{textwrap.fill(note, 125, break_on_hyphens=False)}\n"


def _of_decoder(step: dict[str, Any]) -> str:
    seconds = step["seconds"]["decoder"] + step["seconds"]["decoder backward"]
    low, high = interval(seconds)
    return f"{low * 1e3:.1f} to {high * 1e3:.1f}"


def example(steps: dict[str, Any]) -> str:
    """The table of a plan, as ``crossmae plan`` prints it."""
    fleet = Fleet("h100", 8)
    found = [cost_of(steps, one, IMAGENET_IMAGES, fleet) for one in (recipe(), counterpart(recipe()))]
    return f"```text\n{table(found)}\n```\n"


def epochs(steps: dict[str, Any]) -> str:
    """The paper's epochs and DailyMAE's rate beside their predictions."""
    return f"{runs.table(steps['minutes'])}\n{runs.daily_mae(steps['minutes'])}\n"


def hours(steps: dict[str, Any]) -> str:
    """Runs of the recipe on eight GPUs of each kind."""
    rows = []
    for name, images in (("ImageNet-1k", IMAGENET_IMAGES), ("COCO", COCO_IMAGES)):
        for one in (recipe(), counterpart(recipe())):
            cells = [span(cost_of(steps, one, images, Fleet(device, 8)).run) for device in GPUS]
            rows.append([f"{name}, {images:,} images", one.model, *cells])
    headers = ["images", "model", *(f"8 x {name}" for name in GPUS.values())]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.predictions.plans", main))
