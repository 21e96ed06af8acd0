"""What pretraining was worth to a classifier, as a table and a picture, from the study's record alone."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from crossmae.figures import new_figure, write_figure


def table(record: Mapping[str, Any]) -> str:
    """Accuracies at the end of fine-tuning, with their spread, as Markdown."""
    text = (
        f"{record['tuning_steps']} steps of fine-tuning after {record['steps']} of pretraining, {record['batch']} "
        f"images a step, {record['seeds']} seeds, mean and standard deviation in percent on held-out images; PyTorch "
        f"{record['torch']} on a CPU.\n"
    )
    for task in _names(record, "task"):
        rows = [
            (f"from {start}", *(_spread(record, task, start, what) for what in ("top1", "top5")))
            for start in _names(record, "start")
        ]
        headers = ["", "top-1", "top-5"]
        text += f"\n**{task}**\n\n{tabulate(rows, headers=headers, tablefmt='github', disable_numparse=True)}\n"
    return text


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Accuracy on held-out images by step of fine-tuning: a thin line for every run, a thick one for the mean."""
    tasks = _names(record, "task")
    figure, axes = new_figure(1, len(tasks), 5.5 * len(tasks), 3.8)
    for axis, task in zip(axes[0], tasks, strict=True):
        for place, start in enumerate(_names(record, "start")):
            curves = [run["accuracies"] for run in _runs(record, task, start)]
            for curve in curves:
                axis.plot([p["step"] for p in curve], [100 * p["top1"] for p in curve], color=f"C{place}", alpha=0.3)
            points = zip(*([100 * p["top1"] for p in curve] for curve in curves), strict=True)
            means = list(map(statistics.mean, points))
            axis.plot([p["step"] for p in curves[0]], means, "o-", color=f"C{place}", label=f"from {start}")
        axis.set(title=task, xlabel="step of fine-tuning", ylabel="top-1 accuracy, %")
    axes[0][-1].legend()
    write_figure(figure, path)


def _names(record: Mapping[str, Any], what: str) -> list[str]:
    return list(dict.fromkeys(run[what] for run in record["runs"]))


def _runs(record: Mapping[str, Any], task: str, start: str) -> list[Mapping[str, Any]]:
    return [run for run in record["runs"] if run["task"] == task and run["start"] == start]


def _spread(record: Mapping[str, Any], task: str, start: str, what: str) -> str:
    """Mean and standard deviation at the end; of a single run the value."""
    values = [100 * run["accuracies"][-1][what] for run in _runs(record, task, start)]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
