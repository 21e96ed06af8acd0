"""Decoders and whole models: against the release's formulation and against MAE's, with many images and with few."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import crossmae
from benchmarks.contest import (
    BOTH,
    FORWARD,
    STEP,
    Arguments,
    Contest,
    Direction,
    Form,
    MissingError,
    Solver,
    Work,
    with_compiled,
)
from benchmarks.release import SYNCHRONIZES, release_decode, release_model_loss
from benchmarks.suites.shapes import MASK_RATIO, config_of, model_name, model_sizes
from crossmae.flops import decoder_macs
from crossmae.masking import Masking, mask_counts
from crossmae.model import MaskedAutoencoder, Output
from crossmae.model.config import Config
from crossmae_kernels.runtime.dispatch import Implementation
from crossmae_kernels.testing import Draw, Problem

FAMILIES = {"crossmae": "CrossMAE", "mae": "MAE"}
IS_A_GRAPH = "it is a graph"


def decode(form: Form) -> list[Contest]:
    """The comparison with MAE first; then prediction ratios and depths, and in the full form sizes, batches, pixels."""
    (size, *more_sizes), (batch, *_) = form.sizes, form.batches
    if form.name == "small":
        batch *= 2  # to eight images, with which a decoder's products fill two cores
    found = _both(form, size, batch)
    if form.name == "tiny":
        return found
    one = partial(decode_contest, "decode", form)
    found += [one(size, batch, prediction_ratio=ratio) for ratio in (0.5, 0.75)]
    found += [one(size, batch, blocks=blocks) for blocks in (8, 4, 1)]
    if form.full:
        for other in more_sizes:
            found += _both(form, other, batch)
        for other_batch in (64, 128, 256, 512, 2048):
            found += _both(form, size, other_batch)
        found += _both(form, size, 256, image_size=448)
        found += [one(size, 256, prediction_ratio=ratio, image_size=448) for ratio in (0.5, 0.75)]
    mae = found[1]
    return [replace(contest, baseline=None if contest is mae else mae) for contest in found]


def _both(form: Form, size: str, batch: int, image_size: int | None = None) -> list[Contest]:
    """CrossMAE, the release's formulation of it included, and MAE."""
    one = partial(decode_contest, "decode", form, size, batch, image_size=image_size)
    return [one(release=True), one("mae", 8, 0.75)]


def step(form: Form) -> list[Contest]:
    """A whole pretraining step of CrossMAE and of MAE: encoder, decoder, loss, both backward, AdamW."""
    batches = {"tiny": (2,), "small": (2,), "short": (256,), "full": (256, 512, 1024, 2048)}[form.name]
    return [
        model_contest("step", form, size, batch, STEP, family)
        for size in model_sizes(form)
        for batch in batches
        for family in ("crossmae", "mae")
    ]


def launch(form: Form) -> list[Contest]:
    """The decoder and the whole model on few images: what a call costs beside its arithmetic."""
    batches = {"tiny": (1,), "small": (1,), "short": (1, 8), "full": (1, 2, 4, 8)}[form.name]
    return [
        contest
        for batch in batches
        for contest in (
            decode_contest("launch", form, form.sizes[0], batch),
            model_contest("launch", form, model_sizes(form)[0], batch, BOTH),
        )
    ]


def decode_contest(
    suite: str,
    form: Form,
    size: str,
    batch: int,
    family: str = "crossmae",
    blocks: int = 12,
    prediction_ratio: float = 0.25,
    image_size: int | None = None,
    release: bool = False,
) -> Contest:
    """The decoder on random float32 feature maps, which is what an encoder hands out under autocast."""
    config = config_of(form, f"{family}_vit_{size}", image_size, decoder_depth=blocks)
    visible, predicted = mask_counts(config.patches, MASK_RATIO, prediction_ratio)
    maps = len(config.feature_maps or (None,))

    def pose(draw: Draw, batch: int) -> Problem:
        drawn = [draw.normal(batch, visible + 1, config.encoder_width) for _ in range(maps)]
        return Problem("decoder", "", {"maps": drawn, **_masks(draw, batch, visible, predicted, config.patches)})

    def decode(by: Callable[..., Tensor], maps: list[Tensor], visible: Tensor, predicted: Tensor) -> Tensor:
        with autocast(form, maps[0]):
            return by(maps, Masking(visible, predicted, config.patches))

    def ours(decoder: nn.Module) -> Callable[..., Tensor]:
        return partial(decode, decoder)

    def theirs(decoder: Any) -> Callable[..., Tensor]:
        return partial(decode, partial(release_decode, decoder))

    def module() -> nn.Module:
        return _model(config, form.device).decoder

    moved = batch * ((visible + 1) * config.encoder_width * maps * 4 + predicted * config.patch_values * 4)
    flops = 2.0 * batch * decoder_macs(config, prediction_ratio)
    contenders = {"reference": partial(_solver, module, ours), "fused": partial(_solver, module, ours, "triton")}
    if release:
        contenders["release"] = partial(_solver, module, theirs, no_graph=SYNCHRONIZES)
    return Contest(
        suite=suite,
        about={
            "decoder": FAMILIES[family],
            "model": model_name(size),
            "pixels": config.image_size[0],
            "blocks": config.decoder_depth,
            "predicts": prediction_ratio,
        },
        batch=batch,
        dtype=form.dtype,
        pose=pose,
        contenders=with_compiled(form, contenders),
        exact=partial(_solver, lambda: copy.deepcopy(module()).double(), ours),
        work={FORWARD: Work(moved, flops), BOTH: Work(3 * moved, 3 * flops)},
        whole=True,
    )


def model_contest(
    suite: str, form: Form, size: str, batch: int, direction: Direction, family: str = "crossmae"
) -> Contest:
    """A whole model on random images with given masks: a forward and a backward pass, and in a step AdamW's."""
    config = config_of(form, f"{family}_vit_{size}")
    prediction_ratio = 0.25 if family == "crossmae" else MASK_RATIO
    visible, predicted = mask_counts(config.patches, MASK_RATIO, prediction_ratio)

    def pose(draw: Draw, batch: int) -> Problem:
        arguments: Arguments = {"images": draw.normal(batch, config.channels, *config.image_size)}
        arguments |= _masks(draw, batch, visible, predicted, config.patches)
        return Problem("model", "", arguments, constants=frozenset({"images"}))

    def loss(by: Callable[..., Tensor], images: Tensor, visible: Tensor, predicted: Tensor) -> Tensor:
        with autocast(form, images):
            return by(images, Masking(visible, predicted, config.patches))

    def ours(model: nn.Module) -> Callable[..., Tensor]:
        return partial(loss, lambda images, masking: model(images, masking=masking).loss)

    def theirs(model: Any) -> Callable[..., Tensor]:
        return partial(loss, partial(release_model_loss, model))

    def module() -> nn.Module:
        model = _model(config, form.device)
        return copy.deepcopy(model) if direction == STEP else model  # whoever changes weights has their own

    solver = partial(_solver, module, stepping=direction == STEP)
    contenders = {
        "reference": partial(solver, ours),
        "fused": partial(solver, ours, "triton"),
        "fused, graphed": partial(solver, partial(_graphed, form), "triton", no_graph=IS_A_GRAPH),
    }
    if family == "crossmae":
        contenders["release"] = partial(solver, theirs, no_graph=SYNCHRONIZES)
    macs = _encoder_macs(config, visible) + decoder_macs(config, prediction_ratio)
    return Contest(
        suite=suite,
        about={
            "part": "whole model",
            "decoder": FAMILIES[family],
            "model": model_name(size),
            "predicts": prediction_ratio,
        },
        batch=batch,
        dtype=form.dtype,
        pose=pose,
        contenders=with_compiled(form, contenders),
        exact=partial(_solver, lambda: copy.deepcopy(module()).double(), ours),
        work={direction: Work(0, 6.0 * batch * macs)},
        whole=True,
    )


def _solver(
    module: Callable[[], nn.Module],
    call: Callable[[Any], Callable[..., Any]],
    implementation: Implementation = "reference",
    no_graph: str = "",
    stepping: bool = False,
) -> Solver:
    built = module()
    differentiates = no_graph == IS_A_GRAPH
    if differentiates and not stepping:  # whoever changes gradients has their own
        built = copy.deepcopy(built)
    optimizer = None
    if stepping:
        on_cuda = next(built.parameters()).is_cuda
        options: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "fused": on_cuda, "capturable": on_cuda}
        optimizer = torch.optim.AdamW(built.parameters(), **options)
    return Solver(call(built), implementation, built, optimizer, no_graph, differentiates)


def _masks(draw: Draw, batch: int, visible: int, predicted: int, patches: int) -> Arguments:
    """Ids of visible and of predicted patches."""
    order = draw.ids(batch, patches, patches)
    return {"visible": order[:, :visible], "predicted": order[:, patches - predicted :].sort(dim=1).values}


class GraphedLoss:
    """``crossmae.graphed`` on masks that are given; a batch of another size is captured anew."""

    def __init__(self, model: MaskedAutoencoder, form: Form) -> None:
        self.model, self.form = model, form
        self._replay: Callable[[Tensor], Output] | None = None

    def __call__(self, images: Tensor, visible: Tensor, predicted: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss and every parameter's gradient, which the next call overwrites."""
        if self._replay is None or len(self._masking.visible_ids) != len(images):
            self._capture(images, visible, predicted)
            assert self._replay is not None
        self._masking.visible_ids.copy_(visible)
        self._masking.predicted_ids.copy_(predicted)
        return self._replay(images).loss, self._gradients

    def _capture(self, images: Tensor, visible: Tensor, predicted: Tensor) -> None:
        self._masking = Masking(visible.clone(), predicted.clone(), self.model.config.patches)
        with torch.enable_grad(), autocast(self.form, images):
            self._replay = crossmae.graphed(self.model, images, masking=self._masking)
        gradients = [parameter.grad for parameter in self.model.parameters()]
        self._gradients = [gradient for gradient in gradients if gradient is not None]


def _graphed(form: Form, model: MaskedAutoencoder) -> GraphedLoss:
    if form.device.type != "cuda":
        raise MissingError("CUDA graphs need a CUDA device")
    return GraphedLoss(model, form)


def autocast(form: Form, tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast to the form's dtype; none for float32, nor for the judge, who has double precision."""
    if form.dtype == torch.float32 or tensor.dtype == torch.float64:
        return contextlib.nullcontext()
    # Its cache of cast weights would outlive a captured graph.
    return torch.autocast(form.device.type, form.dtype, cache_enabled=False)


def _encoder_macs(config: Config, visible: int) -> int:
    """Multiply-accumulates of the encoder for an image with so many visible patches."""
    tokens, width = visible + 1, config.encoder_width
    block = tokens * width * (4 * width + 2 * int(width * config.mlp_ratio)) + 2 * tokens**2 * width
    return visible * config.patch_values * width + config.encoder_depth * block


@lru_cache(maxsize=2)  # the one at hand and its baseline: several would fill the device
def _model(config: Config, device: torch.device) -> MaskedAutoencoder:
    """A model with random values in every bias and norm."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(device)
