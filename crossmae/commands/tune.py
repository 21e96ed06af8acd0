"""``crossmae tune``: before a run, time every kernel form and tile that a training step uses, and save the best."""

from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from typing import Any

import torch

from crossmae.model import create_model
from crossmae.training.recipe import Precision
from crossmae_kernels.runtime.records import cache_directory
from crossmae_kernels.runtime.tuning import Finding, findings, tuning_mode

# Forms depend on both: as ``create_model`` makes models, and as the recipes for GPUs do.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"residual": "float32", "hidden_layer": "recompute"},
    {"residual": "autocast", "hidden_layer": "save"},
)


def run(model: str, batch: int, precision: Precision, prediction_ratio: float | None, options: dict[str, Any]) -> None:
    """Take a training step and a validation step with tuning enabled, and print the results."""
    if not torch.cuda.is_available():
        raise RuntimeError("tuning needs a CUDA device to time kernels on, and there is none")
    if batch < 1:
        raise ValueError(f"batch must be positive, got {batch}")
    for settings in settings_with(options):
        take_steps(model, batch, precision, prediction_ratio, settings, torch.device("cuda"))
    print(table(findings()))
    print(f"\nRecords: {cache_directory()}")


def settings_with(options: dict[str, Any]) -> list[dict[str, Any]]:
    """The options with each of the settings that they leave open, every combination once."""
    found: list[dict[str, Any]] = []
    for settings in SETTINGS:
        if (combined := {**settings, **options}) not in found:
            found.append(combined)
    return found


def take_steps(
    model: str,
    batch: int,
    precision: Precision,
    prediction_ratio: float | None,
    options: dict[str, Any],
    device: torch.device,
) -> None:
    """Run a forward and backward pass, and a forward pass without gradients."""
    network = create_model(model, **options).to(device)
    images = torch.randn(batch, network.config.channels, *network.config.image_size, device=device)
    dtype = getattr(torch, precision)
    with tuning_mode("all"):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = network(images, prediction_ratio=prediction_ratio).loss
        loss.backward()
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            network.eval()(images, prediction_ratio=prediction_ratio)


def table(found: Iterable[Finding]) -> str:
    """One line per choice, with the times of the rule's and the best tiles, or of all forms."""
    from tabulate import tabulate  # machines with GPUs are often bare, and tune without a table

    rows = []
    for finding in found:
        times = finding.milliseconds
        shown = dict.fromkeys((*times, finding.rule) if finding.kind == "forms" else (finding.rule, finding.best))
        words = [f"{_short(c)} {times[c]:.3f}" if c in times else f"{_short(c)} refused" for c in shown]
        ratio = f"{times[finding.rule] / times[finding.best]:.2f}" if finding.rule in times else ""
        shape = ", ".join(_short(part) for part in finding.key if part not in (False, None))
        rows.append(
            [
                f"{finding.kernel}, {finding.kind}",
                f"{shape}, rows < {finding.rows}",
                _short(finding.rule),
                _short(finding.best),
                "; ".join(words),
                ratio,
            ]
        )
    headers = ["op", "shape", "rule", "chosen", "ms", "rule / chosen"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _short(part: object) -> str:
    """A short spelling of part of a key, or of a choice."""
    if isinstance(part, torch.Size):
        return " x ".join(map(str, part))
    if is_dataclass(part) and not isinstance(part, type):
        return "/".join("-" if value is None else str(value) for value in asdict(part).values())
    return str(part).removeprefix("torch.")
