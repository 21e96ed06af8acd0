"""The plan of a detection run: its schedule and its description."""

from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn

from crossmae.detection.backbone import global_blocks
from crossmae.detection.detector import Detector, HeadConfig
from crossmae.detection.recipe import DetectionRecipe
from crossmae.model import MaskedAutoencoder
from crossmae.training.plan import GIB, Plan, row_of_hidden_layers, rows_of_the_optimizer

DECAYS = (8 / 9, 26 / 27)
"""Fractions of a run after which the learning rate drops to a tenth: ViTDet's steps 163,889 and 177,546 of 184,375."""


@dataclass(frozen=True)
class DetectionPlan(Plan):
    """All numbers of a detection run."""

    recipe: DetectionRecipe

    def learning_rate(self, step: int) -> float:
        """The heads' learning rate at a step: a linear warm-up, then the peak, which drops to a tenth twice."""
        if step < self.warmup_steps:
            return self.peak_learning_rate * (step + 1) / self.warmup_steps
        return self.peak_learning_rate * 0.1 ** sum(step >= round(share * self.steps) for share in DECAYS)


def describe(plan: DetectionPlan, head: HeadConfig) -> str:
    """The plan as text."""
    recipe, config = plan.recipe, plan.config
    with torch.device("meta"):
        detector = Detector(MaskedAutoencoder(config), head)
    parameters = sum(p.numel() for p in detector.parameters())
    side, seeing_all = config.grid[0], ", ".join(map(str, global_blocks(config.encoder_depth)))
    within = f"{min(head.window, side)} x {min(head.window, side)}"
    jitter = " to ".join(f"{scale:g}" for scale in recipe.data.scale)
    shape = f"{config.encoder_depth} blocks of width {config.encoder_width}"
    rows = [
        ("model", f"Mask R-CNN, {parameters / 1e6:,.1f} M parameters"),
        ("encoder", f"{shape}, {recipe.model or 'model not named'}, from {recipe.checkpoint or 'no checkpoint yet'}"),
        *(("annotations", line) for line in plan.found.splitlines()),
        ("images", f"{config.image_size[0]} x {config.image_size[1]}, jitter {jitter}"),
        ("patches", f"{side} x {side} of {config.patch_size} px"),
        ("attention", f"within {within} patches; over all in blocks {seeing_all}, counted from 0"),
        *rows_of_the_optimizer(plan),
        (
            "layer decay",
            f"{recipe.layer_decay:g}; the first layer's learning rate is {first_layer_scale(plan):.2g} of the heads'",
        ),
        ("parameters, gradients, AdamW", f"{16 * parameters / GIB:.2f} GiB"),
        row_of_hidden_layers(plan, config.patches),
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def first_layer_scale(plan: DetectionPlan) -> float:
    """The factor on the learning rate for the patch embedding."""
    return plan.recipe.layer_decay ** (plan.config.encoder_depth + 1)


def parameter_groups(detector: nn.Module, plan: DetectionPlan) -> list[dict[str, object]]:
    """Layer-wise learning rate decay (arXiv 2003.10555), and weight decay except for biases, norms and positions.

    The patch embedding is layer 0, the encoder's i-th block (from 1) is layer i, and everything after it is the last
    layer. The learning rate of layer l is ``layer_decay ** (depth + 1 - l)`` times that of the heads.
    """
    depth, recipe = plan.config.encoder_depth, plan.recipe
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith("positions")
            groups.setdefault((layer_of(name, depth), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "lr_scale": recipe.layer_decay ** (depth + 1 - layer),
        }
        for (layer, decayed), parameters in groups.items()
    ]


def layer_of(name: str, depth: int) -> int:
    """The layer of a detector's parameter, see ``parameter_groups``."""
    if name.startswith("model.encoder.blocks."):
        return int(name.split(".")[3]) + 1
    return 0 if name.startswith("model.encoder.") else depth + 1
