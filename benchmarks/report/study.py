"""What the study found, as a table and a picture, from its record alone."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from crossmae.figures import new_figure, write_figure


def table(record: Mapping[str, Any]) -> str:
    """Accuracies with their spread beside costs, as Markdown."""
    text = (
        f"{record['steps']} steps of {record['batch']} images, {record['seeds']} seeds, mean and standard deviation in "
        f"percent; PyTorch {record['torch']} on a CPU. kNN and linear probe on frozen features of held-out images. A "
        "step is the forward and backward pass of the whole model, timed in turn with MAE's.\n"
    )
    headers = [
        "",
        "kNN",
        "linear probe",
        "decoder MMAC per image",
        "times fewer MACs than MAE",
        "speed-up over MAE, a step",
    ]
    for task in record["costs"]:
        text += f"\n**{task}**\n\n"
        text += tabulate(_rows(record, task), headers=headers, tablefmt="github", disable_numparse=True) + "\n"
    return text


def _rows(record: Mapping[str, Any], task: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (name, *_spread(runs), "", "", "") for name, runs in record["baselines"][task].items()
    ]
    costs = record["costs"][task]
    mae = costs["MAE"]
    for name, cost in costs.items():
        rows.append(
            (
                name,
                *_spread(_runs(record, task, name)),
                f"{cost['decoder_macs'] / 1e6:.2f}",
                f"{mae['decoder_macs'] / cost['decoder_macs']:.2f}",
                f"{mae['step_seconds'] / cost['step_seconds']:.2f}",
            )
        )
    return rows


def _runs(record: Mapping[str, Any], task: str, name: str) -> list[Mapping[str, Any]]:
    return [run for run in record["runs"] if run["task"] == task and run["name"] == name]


def _spread(runs: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """Mean and standard deviation of both accuracies; of a single run the value."""
    cells = []
    for what in ("knn", "linear"):
        values = [100 * run[what] for run in runs]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    return cells[0], cells[1]


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Accuracy against decode compute: a point for every run, a larger one for the mean."""
    figure, axes = new_figure(len(record["costs"]), 2, 11, 3.6 * len(record["costs"]))
    for row, task in zip(axes, record["costs"], strict=True):
        for axis, what, title in zip(row, ("knn", "linear"), ("kNN", "linear probe"), strict=True):
            for place, (name, cost) in enumerate(record["costs"][task].items()):
                values = [100 * run[what] for run in _runs(record, task, name)]
                compute = [cost["decoder_macs"] / 1e6]
                axis.plot(compute * len(values), values, ".", color=f"C{place}", alpha=0.4)
                axis.plot(compute, [statistics.mean(values)], "o", color=f"C{place}", label=name)
            for style, (name, runs) in zip(("--", ":"), record["baselines"][task].items(), strict=True):
                level = statistics.mean(100 * run[what] for run in runs)
                axis.axhline(level, color="grey", linestyle=style, label=name)
            axis.set(title=f"{task}, {title}", xlabel="decoder MMAC per image", ylabel="accuracy, %")
    axes[0][1].legend(fontsize=7)
    write_figure(figure, path)
