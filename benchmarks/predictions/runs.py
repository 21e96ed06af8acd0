"""Whole runs timed by others, beside their predictions by the method of ``crossmae plan``.

They ran the releases' formulations in eager PyTorch, so everything but attention is estimated from bytes and FLOPs.
FlashAttention 2 is assumed to be as fast as this package's attention, whose machine code is at hand.
"""

import statistics
from dataclasses import dataclass
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor

from crossmae.benchmark import release
from crossmae.masking import random_masking
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import named_config
from crossmae.planning.step import ADAMW_BYTES
from crossmae.training.recipe import IMAGENET_IMAGES
from crossmae_kernels.audit.cases import Case
from crossmae_kernels.audit.ceilings import estimate
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.operations import ATTENTION, Operation, record_operations
from crossmae_kernels.audit.reports import report
from crossmae_kernels.environment import Implementation
from crossmae_kernels.runtime.dispatch import default_implementation

# The batch of each GPU is not published; the memory stated fits 1,024.
DEVICE, GPUS, IMAGES, MASK_RATIO = DEVICES["a100"], 2, 1024, 0.75


@dataclass(frozen=True)
class Epoch:
    """A row of CrossMAE's paper: ViT-B, one epoch of ImageNet on two A100s of 80 GB with FlashAttention 2."""

    name: str
    model: str
    prediction_ratio: float
    minutes: float
    """Published."""


EPOCHS = (
    Epoch("MAE, 8 blocks, all masked patches", "mae_vit_base_patch16", 0.75, 9.35),
    Epoch("CrossMAE, 12 blocks, prediction ratio .75", "crossmae_vit_base_patch16", 0.75, 8.41),
    Epoch("CrossMAE, 12 blocks, prediction ratio .25", "crossmae_vit_base_patch16", 0.25, 6.32),
)


def predicted_minutes(epoch: Epoch) -> float:
    """Minutes of an epoch with the release's formulation, ``IMAGES`` at a time on each GPU."""
    found = _operations(epoch, "reference")
    seconds = sum(estimate(operation, DEVICE)[0] for operation in found if not operation.name.startswith(ATTENTION))
    seconds += sum(_attention(operation) for operation in _operations(epoch, "triton"))
    return seconds / 1e6 * IMAGENET_IMAGES / GPUS / IMAGES / 60


def _operations(epoch: Epoch, implementation: Implementation) -> list[Operation]:
    """Operators of both passes, in the release's formulation or with kernels, and of AdamW."""
    ours = implementation == "triton"
    with (
        record_operations(DEVICE.limits) as found,
        default_implementation(implementation),
        mock.patch.object(release, "_select", _select),
    ):
        model = MaskedAutoencoder(named_config(epoch.model))
        images = torch.empty(IMAGES, 3, 224, 224)
        found.clear()
        with torch.autocast("cpu", torch.float16):
            masking = random_masking(IMAGES, model.config.patches, MASK_RATIO, epoch.prediction_ratio)
            if ours or model.config.decoder == "mae":
                loss = model(images, masking=masking).loss
            else:
                loss = release.release_model_loss(model, images, masking)
        loss.backward()
    parameters = sum(p.numel() for p in model.parameters())
    return [*found, Operation("AdamW", False, torch.float32, 0, ADAMW_BYTES * parameters)]


def _select(rows: Tensor, ids: Tensor, patches: int) -> Tensor:
    """The rows that a boolean mask would select; tensors without data do not tell their number."""
    return rows.gather(1, ids[:, :, None].expand(-1, -1, rows.shape[-1]))


def _attention(operation: Operation) -> float:
    """Microseconds of an operation's kernels if it is this package's attention, else 0."""
    if not operation.name.startswith("cross_attention"):
        return 0.0
    reports = [report(Case(launch.name, DEVICE, "fp16", launch)) for launch in operation.launches]
    if unknown := [record for record in reports if "microseconds" not in record]:
        raise ValueError(f"{operation.name} could not be predicted: {unknown[0]}")
    return sum(record["microseconds"] for record in reports)


def factor(minutes: list[float]) -> float:
    """Published over predicted time of all epochs (geometric mean): the only fitted constant."""
    return statistics.geometric_mean(row.minutes / found for row, found in zip(EPOCHS, minutes, strict=True))


def daily_mae(minutes: list[float]) -> str:
    """DailyMAE's images per second beside the prediction for its GPUs, in a sentence."""
    published = 800 * IMAGENET_IMAGES / (18 * 3600)
    at_best = 8 / GPUS * IMAGENET_IMAGES / (60 * minutes[0])
    return (
        "DailyMAE (arXiv 2404.00509) reports 800 epochs of MAE ViT-B in 18 hours on eight A100s, that is "
        f"{published:,.0f} images per second, some at lower resolution. At 224 pixels the prediction for MAE on "
        f"eight A100s is {at_best:,.0f} images per second, or {at_best / factor(minutes):,.0f} with the factor above."
    )


def table(minutes: list[float]) -> str:
    """The paper's rows and their ratios as Markdown tables."""
    fitted = factor(minutes)
    rows = [
        [
            row.name,
            f"{row.minutes:.2f}",
            f"{found:.2f}",
            f"{fitted * found:.2f}",
            f"{fitted * found / row.minutes - 1:+.0%}",
        ]
        for row, found in zip(EPOCHS, minutes, strict=True)
    ]
    headers = ["one epoch on 2 x A100", "published, min", "predicted, min", f"times {fitted:.2f}", "error"]
    ratios = []
    for name, a, b in (("MAE over .75", 0, 1), ("MAE over .25", 0, 2), (".75 over .25", 1, 2)):
        published, found = EPOCHS[a].minutes / EPOCHS[b].minutes, minutes[a] / minutes[b]
        ratios.append([name, f"{published:.2f}", f"{found:.2f}", f"{found / published - 1:+.0%}"])
    return (
        tabulate(rows, headers, tablefmt="github", disable_numparse=True)
        + "\n\n"
        + tabulate(ratios, ["ratio", "published", "predicted", "error"], tablefmt="github", disable_numparse=True)
        + "\n"
    )
