"""What studies of learning found, as tables and pictures, from their records alone."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossmae.benchmark.report import markdown
from crossmae.figures import new_figure, write_figure
from crossmae.files import replacing

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """How the record of a study is shown."""

    table: Callable[[Record], str]
    draw: Callable[[Record, Path], None]

    def leave(self, record: Record, folder: Path, name: str) -> None:
        """Print the table, and write it, the record and the picture."""
        text = self.table(record)
        for ending, content in (("json", json.dumps(record, indent=1)), ("md", text)):
            with replacing(folder / f"{name}.{ending}") as beside:
                beside.write_text(content, "utf-8")
        self.draw(record, folder / f"{name}.png")
        print(text)


def features_table(record: Record) -> str:
    """Accuracies of frozen features with their spread beside costs, as Markdown."""
    text = (
        f"{record['steps']} steps of {record['batch']} images, {record['seeds']} seeds, mean and standard deviation in "
        f"percent; PyTorch {record['torch']} on a CPU. kNN and linear probe on frozen features of held-out images. A "
        "step is the forward and backward pass of the whole model, timed in turn with MAE's.\n"
    )
    headers = ["", "kNN", "linear probe", "decoder MMAC per image", "times fewer MACs than MAE"]
    headers += ["speed-up over MAE, a step"]
    for task, costs in record["costs"].items():
        rows = [
            (name, *_spreads(runs, "knn", "linear"), "", "", "") for name, runs in record["baselines"][task].items()
        ]
        mae = costs["MAE"]
        for name, cost in costs.items():
            rows.append(
                (
                    name,
                    *_spreads(_runs(record, task, name=name), "knn", "linear"),
                    f"{cost['decoder_macs'] / 1e6:.2f}",
                    f"{mae['decoder_macs'] / cost['decoder_macs']:.2f}",
                    f"{mae['step_seconds'] / cost['step_seconds']:.2f}",
                )
            )
        text += _section(task, headers, rows)
    return text


def draw_features(record: Record, path: Path) -> None:
    """Accuracy against decode compute: a point for every run, a larger one for the mean."""
    figure, axes = new_figure(len(record["costs"]), 2, 11, 3.6 * len(record["costs"]))
    for row, task in zip(axes, record["costs"], strict=True):
        for axis, what, title in zip(row, ("knn", "linear"), ("kNN", "linear probe"), strict=True):
            for place, (name, cost) in enumerate(record["costs"][task].items()):
                values = [100 * run[what] for run in _runs(record, task, name=name)]
                compute = [cost["decoder_macs"] / 1e6]
                axis.plot(compute * len(values), values, ".", color=f"C{place}", alpha=0.4)
                axis.plot(compute, [statistics.mean(values)], "o", color=f"C{place}", label=name)
            for style, (name, runs) in zip(("--", ":"), record["baselines"][task].items(), strict=True):
                level = statistics.mean(100 * run[what] for run in runs)
                axis.axhline(level, color="grey", linestyle=style, label=name)
            axis.set(title=f"{task}, {title}", xlabel="decoder MMAC per image", ylabel="accuracy, %")
    axes[0][1].legend(fontsize=7)
    write_figure(figure, path)


def tuning_table(record: Record) -> str:
    """Accuracies at the end of fine-tuning, with their spread, as Markdown."""
    text = (
        f"{record['tuning_steps']} steps of fine-tuning after {record['steps']} of pretraining, {record['batch']} "
        f"images a step, {record['seeds']} seeds, mean and standard deviation in percent on held-out images; PyTorch "
        f"{record['torch']} on a CPU.\n"
    )
    for task in _names(record, "task"):
        rows = []
        for start in _names(record, "start"):
            ends = [run["accuracies"][-1] for run in _runs(record, task, start=start)]
            rows.append((f"from {start}", *_spreads(ends, "top1", "top5")))
        text += _section(task, ["", "top-1", "top-5"], rows)
    return text


def draw_tuning(record: Record, path: Path) -> None:
    """Accuracy on held-out images by step of fine-tuning: a thin line for every run, a thick one for the mean."""
    tasks = _names(record, "task")
    figure, axes = new_figure(1, len(tasks), 5.5 * len(tasks), 3.8)
    for axis, task in zip(axes[0], tasks, strict=True):
        for place, start in enumerate(_names(record, "start")):
            curves = [run["accuracies"] for run in _runs(record, task, start=start)]
            for curve in curves:
                axis.plot([p["step"] for p in curve], [100 * p["top1"] for p in curve], color=f"C{place}", alpha=0.3)
            points = zip(*([100 * p["top1"] for p in curve] for curve in curves), strict=True)
            means = list(map(statistics.mean, points))
            axis.plot([p["step"] for p in curves[0]], means, "o-", color=f"C{place}", label=f"from {start}")
        axis.set(title=task, xlabel="step of fine-tuning", ylabel="top-1 accuracy, %")
    axes[0][-1].legend()
    write_figure(figure, path)


def residuals_table(record: Record) -> str:
    """Accuracies by the dtype of the residual, and their differences from seed to seed, as Markdown."""
    text = (
        f"{record['steps']} steps of {record['batch']} images in bfloat16, {record['seeds']} seeds, mean and standard "
        f"deviation in percent; PyTorch {record['torch']} on a CPU. kNN and linear probe on frozen features of "
        "held-out images.\n"
    )
    for task in _names(record, "task"):
        runs = {name: _runs(record, task, residual=name) for name in _names(record, "residual")}
        rows = [(f"residual in {name}", *_spreads(found, "knn", "linear")) for name, found in runs.items()]
        pairs = list(zip(runs["autocast"], runs["float32"], strict=True))
        less = [{what: run[what] - other[what] for what in ("knn", "linear")} for run, other in pairs]
        rows.append(("autocast less float32, seed by seed", *_spreads(less, "knn", "linear")))
        text += _section(task, ["", "kNN", "linear probe"], rows)
    return text


def draw_residuals(record: Record, path: Path) -> None:
    """Accuracy by the dtype of the residual: a line for each seed, on axes of one height so that slopes compare."""
    tasks, residuals = _names(record, "task"), _names(record, "residual")
    figure, axes = new_figure(1, 2 * len(tasks), 5.5 * len(tasks), 3.2)
    panels = [(task, what) for task in tasks for what in (("knn", "kNN"), ("linear", "linear probe"))]
    values = [[100 * run[what] for run in _runs(record, task)] for task, (what, _) in panels]
    middles = [(min(found) + max(found)) / 2 for found in values]
    half = 0.6 * max(max(found) - min(found) for found in values)
    for axis, middle, (task, (what, title)) in zip(axes[0], middles, panels, strict=True):
        axis.set_ylim(middle - half, middle + half)
        for seeds in zip(*(_runs(record, task, residual=name) for name in residuals), strict=True):
            axis.plot(residuals, [100 * run[what] for run in seeds], "o-", label=f"seed {seeds[0]['seed']}")
        axis.set(title=f"{task}, {title}", xlabel="residual", ylabel="accuracy, %")
        axis.margins(x=0.3)
    axes[0][-1].legend(fontsize=7)
    write_figure(figure, path)


def _section(task: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"\n**{task}**\n\n{markdown(headers, rows)}\n"


def _names(record: Record, what: str) -> list[str]:
    return list(dict.fromkeys(run[what] for run in record["runs"]))


def _runs(record: Record, task: str, **wanted: str) -> list[Mapping[str, Any]]:
    wanted["task"] = task
    return [run for run in record["runs"] if all(run[name] == value for name, value in wanted.items())]


def _spreads(runs: Sequence[Mapping[str, float]], *whats: str) -> list[str]:
    """Mean and standard deviation of accuracies; of a single run the value."""
    cells = []
    for what in whats:
        values = [100 * run[what] for run in runs]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    return cells


FEATURES, TUNING = Study(features_table, draw_features), Study(tuning_table, draw_tuning)
RESIDUALS = Study(residuals_table, draw_residuals)
# By the name of the record.
STUDIES = {"study": FEATURES, "transfer": TUNING, "residuals": RESIDUALS}
