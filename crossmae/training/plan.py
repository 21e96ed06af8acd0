"""A recipe worked out for given images and devices: counts, learning rates, ratios, and what the run will cost."""

import math
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensorMode

from crossmae.flops import decoder_macs
from crossmae.masking import grid_stride, mask_counts
from crossmae.measure import bytes_saved_for_backward
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae.model.values import pair
from crossmae.training.recipe import Recipe, between

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """All numbers of a run. Steps are the optimizer's and count from 0; ``found`` describes the images in words."""

    recipe: Recipe
    config: Config
    images: int
    devices: int
    steps_per_epoch: int
    steps: int
    micro_batch: int
    accumulation: int
    peak_learning_rate: float
    found: str = ""

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up."""
        return round(self.recipe.warmup * self.steps)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.peak_learning_rate * cosine_with_warmup(step, self.steps, self.warmup_steps)

    def ratios(self, step: int) -> tuple[float, float]:
        """Mask ratio and prediction ratio of a step."""
        return ratios(self.recipe, self.config, step // self.steps_per_epoch / self._last_epoch)

    @property
    def _last_epoch(self) -> int:
        return max(1, math.ceil(self.steps / self.steps_per_epoch) - 1)

    def interval(self, epochs: float) -> int:
        """Epochs as a number of steps, at least one."""
        return max(1, round(epochs * self.steps_per_epoch))


def ratios(recipe: Recipe, config: Config, share: float) -> tuple[float, float]:
    """Mask ratio and prediction ratio after a share of the run."""
    # Rounded, so that the counts of patches are those of a number that a person would write.
    mask_ratio = round(between(recipe.mask_ratio, share), 4)
    if recipe.prediction_ratio is None:
        return mask_ratio, mask_ratio if config.decoder == "mae" else min(0.25, mask_ratio)
    return mask_ratio, round(between(recipe.prediction_ratio, share), 4)


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on the peak learning rate: linear over ``warmup`` steps, then half a cosine down to zero (MAE, A.1)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_plan(recipe: Recipe, images: int, devices: int, found: str = "") -> Plan:
    """Work a recipe out for a number of images, which ``found`` describes, and of devices.

    Raises:
        ValueError: if batch, devices, ratios and images do not fit each other.
    """
    config = recipe.config()
    if recipe.batch_size > images:
        raise ValueError(f"batch_size must be at most the number of images {images}, got {recipe.batch_size}")
    for share in (0.0, 1.0):
        mask_counts(config.patches, *ratios(recipe, config, share))
    if recipe.masking == "grid":
        grid_stride(config.grid, ratios(recipe, config, 0.0)[0])
    if recipe.batch_size % devices:
        raise ValueError(f"batch_size must be a multiple of the number of devices {devices}, got {recipe.batch_size}")
    accumulation = _accumulation(recipe.batch_size // devices, recipe.micro_batch)
    steps_per_epoch = images // recipe.batch_size
    mask_ratio, prediction_ratio = ratios(recipe, config, 0.0)
    scaled = recipe.base_learning_rate * prediction_ratio / mask_ratio * recipe.batch_size / 256
    return Plan(
        recipe=recipe,
        config=config,
        images=images,
        devices=devices,
        steps_per_epoch=steps_per_epoch,
        steps=recipe.steps or max(1, round(recipe.epochs * steps_per_epoch)),
        micro_batch=recipe.batch_size // devices // accumulation,
        accumulation=accumulation,
        peak_learning_rate=scaled if recipe.learning_rate is None else recipe.learning_rate,
        found=found,
    )


def _accumulation(images: int, most: int | None) -> int:
    """Micro-batches of a device's images of a step: the fewest equal ones of at most ``most`` images."""
    return next(parts for parts in range(1, images + 1) if images % parts == 0 and images // parts <= (most or images))


def describe(plan: Plan) -> str:
    """The plan as text, with predicted memory and decode compute."""
    recipe, config = plan.recipe, plan.config
    mask_ratio, prediction_ratio = plan.ratios(0)
    visible, predicted = mask_counts(config.patches, mask_ratio, prediction_ratio)
    height, width = pair(config.patch_size)
    sides = height if height == width else f"{height} x {width}"
    parameters, kept = _memory(plan)
    last_ratios = plan.ratios(plan.steps - 1)
    changing = "" if last_ratios == plan.ratios(0) else f", at the end {last_ratios[0]:g} and {last_ratios[1]:g}"
    macs = decoder_macs(config, prediction_ratio, mask_ratio)
    mae = Config.from_dict(
        {
            **config.to_dict(),
            "decoder": "mae",
            "feature_maps": None,
            "decoder_self_attention": False,
            "last_mix_norm": True,
        }
    )
    rows = [
        ("model", f"{recipe.model}, {parameters / 1e6:,.1f} M parameters"),
        ("images", f"{plan.images:,} of {config.image_size[0]} x {config.image_size[1]}, {config.channels} channels"),
        *([("pixels", plan.found)] if plan.found else []),
        ("patches", f"{config.patches} of {sides} px: {visible} seen, {predicted} predicted"),
        ("masks", recipe.masking),
        ("ratios", f"mask {mask_ratio:g}, prediction {prediction_ratio:g}{changing}"),
        (
            "batch",
            f"{recipe.batch_size:,} = {plan.devices} device(s) x {plan.accumulation} micro-batch(es) "
            f"x {plan.micro_batch:,}",
        ),
        ("steps", f"{plan.steps:,} = {plan.steps / plan.steps_per_epoch:,.4g} epochs of {plan.steps_per_epoch:,}"),
        ("learning rate", f"{plan.peak_learning_rate:.3g} at its peak, after {plan.warmup_steps:,} steps"),
        ("precision", f"{recipe.precision}, {recipe.execution}"),
        ("parameters, gradients, AdamW", f"{16 * parameters / GIB:.2f} GiB, over all devices if sharded"),
        ("kept for the backward pass", f"{kept / GIB:.2f} GiB on each device (reference operations)"),
        (
            "decoder, forward",
            f"{macs / 1e9:,.3g} GMAC per image; MAE of the same depth {decoder_macs(mae) / macs:.2f} x",
        ),
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _memory(plan: Plan) -> tuple[int, int]:
    """Number of parameters, and bytes that a micro-batch keeps for the backward pass, on tensors without data."""
    config = plan.config
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(plan.recipe.precision)
    with FakeTensorMode():
        model = MaskedAutoencoder(config)
        images = torch.empty(plan.micro_batch, config.channels, *config.image_size)

        def forward() -> object:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                return model(images, *plan.ratios(0))

        kept = bytes_saved_for_backward(forward, model)
    wide = 2 if plan.recipe.precision == "float64" else 1
    return sum(p.numel() for p in model.parameters()), wide * kept
