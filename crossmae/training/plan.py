"""A recipe resolved for given images and devices: counts, learning rates, ratios, and the cost of the run."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from crossmae.flops import decoder_macs, decoder_parts
from crossmae.masking import grid_stride, mask_counts
from crossmae.measure import bytes_saved_for_backward
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config, usual_prediction_ratio
from crossmae.model.values import pair
from crossmae.training.recipe import Recipe, TrainingRecipe, between
from crossmae_kernels.runtime.device import Limits
from crossmae_kernels.runtime.dispatch import default_implementation

GIB = 2**30
# Bytes of a number in a matrix product; two in all other precisions.
_BYTES = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Plan:
    """All numbers of a run. Steps are the optimizer's and count from 0; ``found`` describes the images.

    Raises:
        ValueError: if batch size, devices and images do not fit together.
    """

    recipe: TrainingRecipe
    config: Config
    images: int
    devices: int
    found: str = ""

    def __post_init__(self) -> None:
        batch = self.recipe.batch_size
        if batch > self.images:
            raise ValueError(f"batch_size must be at most the number of images {self.images}, got {batch}")
        if batch % self.devices:
            raise ValueError(f"batch_size must be a multiple of the number of devices {self.devices}, got {batch}")

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in the images."""
        return self.images // self.recipe.batch_size

    @property
    def steps(self) -> int:
        """Number of steps in the run."""
        return self.recipe.steps or max(1, round(self.recipe.epochs * self.steps_per_epoch))

    @cached_property
    def accumulation(self) -> int:
        """Micro-batches per device and step: the fewest equal ones of at most ``recipe.micro_batch`` images."""
        images = self.recipe.batch_size // self.devices
        most = self.recipe.micro_batch or images
        return next(n for n in range(1, images + 1) if images % n == 0 and images // n <= most)

    @property
    def micro_batch(self) -> int:
        """Images that a device processes at once."""
        return self.recipe.batch_size // self.devices // self.accumulation

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate: the recipe's, or its base rate scaled with the batch (arXiv 1706.02677)."""
        recipe = self.recipe
        return recipe.learning_rate or recipe.base_learning_rate * recipe.batch_size / 256

    @property
    def warmup_steps(self) -> int:
        """Number of warm-up steps."""
        return round(self.recipe.warmup * self.steps)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.peak_learning_rate * cosine_with_warmup(step, self.steps, self.warmup_steps)

    def interval(self, epochs: float) -> int:
        """A number of epochs in steps, at least one."""
        return max(1, round(epochs * self.steps_per_epoch))


@dataclass(frozen=True)
class PretrainingPlan(Plan):
    """A plan with mask ratios, which have to fit the patches; ``start`` describes what its encoder starts from."""

    recipe: Recipe
    start: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for share in (0.0, 1.0):
            mask_counts(self.config.patches, *self._ratios(share))
        if self.recipe.masking == "grid":
            grid_stride(self.config.grid, self._ratios(0.0)[0])

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate, also scaled by the predicted share of the masked patches."""
        recipe = self.recipe
        mask_ratio, prediction_ratio = self._ratios(0.0)
        scaled = recipe.base_learning_rate * prediction_ratio / mask_ratio * recipe.batch_size / 256
        return recipe.learning_rate or scaled

    def ratios(self, step: int) -> tuple[float, float]:
        """Mask ratio and prediction ratio at a step."""
        last_epoch = max(1, math.ceil(self.steps / self.steps_per_epoch) - 1)
        return self._ratios(step // self.steps_per_epoch / last_epoch)

    def _ratios(self, share: float) -> tuple[float, float]:
        """Mask ratio and prediction ratio after a share of the run."""
        # Rounded, so that the counts of patches are those of the ratio as one would write it.
        mask_ratio = round(between(self.recipe.mask_ratio, share), 4)
        if self.recipe.prediction_ratio is None:
            return mask_ratio, usual_prediction_ratio(self.config, mask_ratio)
        return mask_ratio, round(between(self.recipe.prediction_ratio, share), 4)


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on the peak learning rate: linear over ``warmup`` steps, then half a cosine down to zero (MAE, A.1)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_plan(recipe: Recipe, images: int, devices: int, found: str = "", start: str = "") -> PretrainingPlan:
    """Resolve a recipe for a number of images and devices.

    ``found`` describes the images, ``start`` what the encoder starts from.

    Raises:
        ValueError: if batch size, devices, ratios and images do not fit together.
    """
    return PretrainingPlan(recipe, recipe.config(), images, devices, found, start)


def describe(plan: PretrainingPlan) -> str:
    """The plan as text, with predicted memory and decode compute."""
    recipe, config = plan.recipe, plan.config
    mask_ratio, prediction_ratio = plan.ratios(0)
    visible, predicted = mask_counts(config.patches, mask_ratio, prediction_ratio)
    height, width = pair(config.patch_size)
    sides = height if height == width else f"{height} x {width}"
    parameters, kept = memory_of_pretraining(plan)
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
        *([("encoder", f"starts from {plan.start}")] if plan.start else []),
        *([("pixels", plan.found)] if plan.found else []),
        ("patches", f"{config.patches} of {sides} px: {visible} seen, {predicted} predicted"),
        ("masks", recipe.masking),
        ("ratios", f"mask {mask_ratio:g}, prediction {prediction_ratio:g}{changing}"),
        *rows_of_the_optimizer(plan),
        *rows_of_memory(parameters, kept),
        row_of_hidden_layers(
            plan,
            visible + config.class_tokens,
            decoder_parts(config, prediction_ratio, mask_ratio)["mlp"] // (2 * config.decoder_width),
        ),
        ("residual", _residual(plan)),
        (
            "decoder, forward",
            f"{macs / 1e9:,.3g} GMAC per image; MAE of the same depth {decoder_macs(mae) / macs:.2f} x",
        ),
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


_OF_AUTO = " (CUDA graphs on one GPU, eager elsewhere)"


def rows_of_the_optimizer(plan: Plan) -> list[tuple[str, str]]:
    """Rows of the table on batches, steps, learning rate and precision."""
    recipe = plan.recipe
    batches = f"{plan.devices} device(s) x {plan.accumulation} micro-batch(es) x {plan.micro_batch:,}"
    return [
        ("batch", f"{recipe.batch_size:,} = {batches}"),
        ("steps", f"{plan.steps:,} = {plan.steps / plan.steps_per_epoch:,.4g} epochs of {plan.steps_per_epoch:,}"),
        ("learning rate", f"{plan.peak_learning_rate:.3g} at its peak, after {plan.warmup_steps:,} steps"),
        ("precision", f"{recipe.precision}, {recipe.execution}{_OF_AUTO if recipe.execution == 'auto' else ''}"),
    ]


def row_of_hidden_layers(plan: Plan, tokens: int, in_decoder: int = 0) -> tuple[str, str]:
    """The cost of saving the MLPs' hidden layers, or of recomputing them, with kernels.

    An image has ``tokens`` in the encoder and ``in_decoder`` numbers in the hidden layers of a decoder.
    """
    config = plan.config
    in_encoder = config.encoder_depth * tokens * int(config.encoder_width * config.mlp_ratio)
    kept = plan.micro_batch * (in_encoder + in_decoder) * _BYTES.get(plan.recipe.precision, 2) / GIB
    again = in_encoder * config.encoder_width + in_decoder * config.decoder_width
    saved, recomputed = f"{kept:.2f} GiB on each device", f"{again / 1e9:,.3g} GMAC per image"
    if config.gradient_checkpointing:
        words = f"recomputed with their blocks, {recomputed} of them"
    elif config.hidden_layer == "save":
        words = f"saved, {saved}; model_options.hidden_layer=recompute takes {recomputed} instead"
    else:
        words = f"recomputed by kernels, {recomputed}; saving them takes {saved}"
    return "hidden layers", words


def _residual(plan: PretrainingPlan) -> str:
    """The dtype of tokens between blocks."""
    if plan.config.residual == "autocast" and plan.recipe.precision in ("auto", "bfloat16", "float16"):
        return "16 bits under autocast: half the bytes between blocks, one more rounding in each"
    return f"{'float64' if plan.recipe.precision == 'float64' else 'float32'} between blocks"


def rows_of_memory(parameters: int, kept: int) -> list[tuple[str, str]]:
    """Rows of the table on what ``memory`` counted."""
    return [
        ("parameters, gradients, AdamW", f"{16 * parameters / GIB:.2f} GiB, spread over all devices if sharded"),
        ("kept for the backward pass", f"{kept / GIB:.2f} GiB on each device (reference operations)"),
    ]


def memory_of_pretraining(plan: PretrainingPlan, limits: Limits | None = None) -> tuple[int, int]:
    """``memory`` of the whole model at the first step of the run."""
    return memory(
        plan, lambda: MaskedAutoencoder(plan.config), lambda model, images: model(images, *plan.ratios(0)), limits
    )


def memory(
    plan: Plan,
    make: Callable[[], nn.Module],
    call: Callable[[nn.Module, Tensor], object],
    limits: Limits | None = None,
) -> tuple[int, int]:
    """Number of parameters, and bytes that a micro-batch keeps for the backward pass, found without data.

    ``make`` makes the module to train, ``call`` calls it with images ``(B, C, H, W)``. With ``limits``, kernels for
    such a GPU are assumed, which keep less than the reference operations.
    """
    config = plan.config
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(plan.recipe.precision)
    with FakeTensorMode() if limits is None else _kernels(limits):
        module = make()
        images = torch.empty(plan.micro_batch, config.channels, *config.image_size)

        def forward() -> object:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                return call(module, images)

        kept = bytes_saved_for_backward(forward, module)
    wide = 2 if plan.recipe.precision == "float64" else 1
    return sum(p.numel() for p in module.parameters()), wide * kept


@contextmanager
def _kernels(limits: Limits) -> Iterator[None]:
    """Within the block, tensors have no data and operators keep what the kernels would keep."""
    from crossmae_kernels.audit.recording import record  # which needs Triton

    with record(limits), default_implementation("triton"):
        yield
