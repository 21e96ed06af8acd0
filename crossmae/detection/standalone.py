"""Evaluate a detector's checkpoint, without training."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from crossmae.detection.checkpoint import checkpoint_in, load_detector
from crossmae.detection.opening import open_evaluation
from crossmae.detection.plan import DetectionPlan
from crossmae.detection.recipe import DetectionOptions, DetectionRecipe
from crossmae.detection.scoring import KINDS
from crossmae.files import make_folder, replacing
from crossmae.training.devices import launched, processes
from crossmae.training.recipe import RECIPE


def evaluate(checkpoint: Path, recipe: DetectionRecipe, options: DetectionOptions) -> dict[str, float]:
    """Compute a checkpoint's COCO metrics (see ``scoring.average_precision``), print them and write them to a folder.

    A dry run only prints what would be evaluated, and returns no metrics.

    The folder then holds ``evaluation.json``, ``detections.json`` in COCO's results format, and ``detections.png``.

    Args:
        checkpoint: of a detection run, or a run's folder.
        recipe: its ``data.evaluation`` says what to evaluate on; by default the run's own.
        options: where to write and which devices to use.

    Raises:
        ValueError, OSError: before any work, if checkpoint, annotations or folder do not allow it.
    """
    detector = load_detector(checkpoint)
    config = detector.model.config
    recipe = _as_the_run(recipe, checkpoint_in(checkpoint).parent.parent / RECIPE)
    evaluation = open_evaluation(recipe.data, config.channels, detector.head.categories)
    if options.dry_run:
        print("\n".join(evaluation.annotations.describe()))
        return {}
    folder, devices = Path(options.out), processes(options)
    make_folder(folder)
    # Only the plan's precision and devices matter, as nothing is trained.
    fabric = launched(DetectionPlan(replace(recipe, batch_size=devices), config, devices, devices), options)
    if fabric.is_global_zero:
        print("\n".join(evaluation.annotations.describe()))
    detector.to(fabric.device)
    with fabric.autocast():
        found = evaluation.detections(detector, fabric)
    metrics = evaluation.score(found)
    if fabric.is_global_zero:
        if evaluation.unreadable:
            first = next(iter(evaluation.unreadable))
            print(f"{len(evaluation.unreadable):,} images could not be read, so nothing is detected in them: {first}")
        print(table(metrics))
        _write(
            {name: None if math.isnan(value) else value for name, value in metrics.items()}, folder / "evaluation.json"
        )
        _write(found, folder / "detections.json")
        evaluation.draw(detector, folder / "detections.png")
        print(f"Written: {folder}/evaluation.json, detections.json, detections.png")
    return metrics


def _as_the_run(recipe: DetectionRecipe, written: Path) -> DetectionRecipe:
    """The recipe with the run's own precision and, if it names none, the run's evaluation images."""
    if not written.is_file():
        return recipe
    own = json.loads(written.read_text("utf-8"))
    data = recipe.data
    if data.evaluation is None:
        data = replace(data, **{name: own["data"][name] for name in ("evaluation", "evaluation_images")})
    return replace(recipe, precision=own["precision"], data=data)


def table(metrics: dict[str, float]) -> str:
    """Metrics in percent, one row each, for boxes and masks side by side; then a row per category."""
    names = [name.removeprefix("box ") for name in metrics if name.startswith("box ")]
    rows = [(name, *(_percent(metrics[f"{kind} {name}"]) for kind in KINDS)) for name in names]
    return tabulate(rows, headers=["%", *KINDS], tablefmt="github", disable_numparse=True)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _write(content: Any, path: Path) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(content), "utf-8")
