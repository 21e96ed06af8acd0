"""Decoders and whole models: against the release's formulation and against MAE's, with many images and with few."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import crossmae
from benchmarks.contest import (
    BOTH,
    FORWARD,
    MASK_RATIO,
    PREDICTION_RATIO,
    STEP,
    Contest,
    Direction,
    Form,
    MissingError,
    Solver,
    Work,
    model_name,
)
from crossmae.benchmark.release import SYNCHRONIZES, release_decode, release_model_loss
from crossmae.flops import decoder_macs
from crossmae.masking import Masking, mask_counts
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae_kernels.environment import Implementation
from crossmae_kernels.testing import Draw, Problem

FAMILIES = {"crossmae": "CrossMAE", "mae": "MAE"}

# A decoder or a model -> what it makes of its input and a masking.
Call = Callable[[Any], Callable[[Any, Masking], Tensor]]


def decode(form: Form) -> list[Contest]:
    """The comparison with MAE first; then prediction ratios and depths, and in the full form sizes, batches, pixels."""
    (size, *more_sizes), (batch, *_) = form.sizes, form.batches
    if form.name == "small":
        batch *= 2  # to eight images, with which a decoder's products fill two cores
    found = _both(form, size, batch)
    if form.name == "tiny":
        return found
    one = partial(decoder_contest, "decode", form)
    found += [one(size, batch, prediction_ratio=ratio) for ratio in (0.5, 0.75)]
    found += [one(size, batch, blocks=blocks) for blocks in (8, 4, 1)]
    if form.name == "full":
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
    one = partial(decoder_contest, "decode", form, size, batch, image_size=image_size, decisive=True)
    return [one(), one("mae", 8, MASK_RATIO)]


def step(form: Form) -> list[Contest]:
    """A whole pretraining step of CrossMAE and of MAE: encoder, decoder, loss, both backward, AdamW."""
    batches = {"tiny": (2,), "small": (2,), "short": (256,), "full": (256, 512, 1024, 2048)}[form.name]
    return [
        model_contest("step", form, size, batch, STEP, family)
        for size in _model_sizes(form)
        for batch in batches
        for family in FAMILIES
    ]


def launch(form: Form) -> list[Contest]:
    """The decoder and the whole model on few images: what a call costs beside its arithmetic, which a graph shows."""
    batches = {"tiny": (1,), "small": (1,), "short": (1, 8), "full": (1, 2, 4, 8)}[form.name]
    return [
        contest
        for batch in batches
        for contest in (
            decoder_contest("launch", form, form.sizes[0], batch),
            model_contest("launch", form, _model_sizes(form)[0], batch, BOTH, "crossmae"),
        )
    ]


def _model_sizes(form: Form) -> tuple[str, ...]:
    """Whole models that are measured; on a CPU a step of a larger one takes seconds."""
    return ("small_patch16",) if form.name == "small" else form.sizes


def _config(form: Form, family: str, size: str, image_size: int | None = None, blocks: int | None = None) -> Config:
    """Of so many decoder blocks, as many as the model has unless given; in the tiny form of one on each side."""
    if form.name == "tiny":
        return form.config(f"{family}_vit_{size}", encoder_depth=1, decoder_depth=1)
    return form.config(f"{family}_vit_{size}", image_size, **({"decoder_depth": blocks} if blocks else {}))


def decoder_contest(
    suite: str,
    form: Form,
    size: str,
    batch: int,
    family: str = "crossmae",
    blocks: int = 12,
    prediction_ratio: float = PREDICTION_RATIO,
    image_size: int | None = None,
    decisive: bool = False,
) -> Contest:
    """The decoder on random float32 feature maps, which is what an encoder hands out under autocast."""
    config = _config(form, family, size, image_size, blocks)
    visible, predicted = mask_counts(config.patches, MASK_RATIO, prediction_ratio)
    maps, pixels = len(config.feature_maps or (None,)), config.image_size[0]
    about = {"decoder": FAMILIES[family], "model": model_name(size), "pixels": pixels, "blocks": config.decoder_depth}
    moved = 4.0 * batch * ((visible + 1) * config.encoder_width * maps + predicted * config.patch_values)
    flops = 2.0 * batch * decoder_macs(config, prediction_ratio)

    def pose(draw: Draw, batch: int) -> Problem:
        drawn = [draw.normal(batch, visible + 1, config.encoder_width) for _ in range(maps)]
        return Problem("decoder", "", {"inputs": drawn, **_masks(draw, batch, config, visible, predicted)})

    return _contest(
        form,
        config,
        module=lambda: _model(config, form.device).decoder,
        ours=lambda decoder: decoder,
        theirs=(lambda decoder: partial(release_decode, decoder)) if decisive and family == "crossmae" else None,
        decisive=decisive,
        suite=suite,
        about=about | {"predicts": prediction_ratio},
        batch=batch,
        pose=pose,
        work={FORWARD: Work(moved, flops), BOTH: Work(3 * moved, 3 * flops)},
    )


def model_contest(suite: str, form: Form, size: str, batch: int, direction: Direction, family: str) -> Contest:
    """A whole model on random images with given masks: a forward and a backward pass, and in a step AdamW's."""
    config = _config(form, family, size)
    prediction_ratio = PREDICTION_RATIO if family == "crossmae" else MASK_RATIO
    visible, predicted = mask_counts(config.patches, MASK_RATIO, prediction_ratio)
    about = {"part": "whole model", "decoder": FAMILIES[family], "model": model_name(size)}
    macs = _encoder_macs(config, visible) + decoder_macs(config, prediction_ratio)

    def pose(draw: Draw, batch: int) -> Problem:
        arguments = {"inputs": draw.normal(batch, config.channels, *config.image_size)}
        arguments |= _masks(draw, batch, config, visible, predicted)
        return Problem("model", "", {**arguments}, constants=frozenset({"inputs"}))

    def module() -> nn.Module:
        model = _model(config, form.device)
        return copy.deepcopy(model) if direction == STEP else model  # whoever changes weights has their own

    return _contest(
        form,
        config,
        module=module,
        ours=lambda model: lambda images, masking: model(images, masking=masking).loss,
        theirs=(lambda model: partial(release_model_loss, model)) if family == "crossmae" else None,
        suite=suite,
        about=about | {"predicts": prediction_ratio},
        batch=batch,
        pose=pose,
        work={direction: Work(0, 6.0 * batch * macs)},
    )


def _masks(draw: Draw, batch: int, config: Config, visible: int, predicted: int) -> dict[str, Tensor]:
    """Ids of visible and of predicted patches."""
    order = draw.ids(batch, config.patches, config.patches)
    return {"visible": order[:, :visible], "predicted": order[:, config.patches - predicted :].sort(dim=1).values}


class GraphedLoss:
    """``crossmae.graphed`` on masks that are given, as people train; a batch of another size is captured anew."""

    def __init__(self, device: torch.device, model: MaskedAutoencoder) -> None:
        if device.type != "cuda":
            raise MissingError("a CUDA graph needs a CUDA device")
        self.model, self.gradients = model, list[Tensor]()
        self._masking: Masking | None = None

    def __call__(self, images: Tensor, masking: Masking) -> Tensor:
        """The loss; the next call overwrites it and the ``gradients`` of all parameters."""
        if self._masking is None or len(self._masking.visible_ids) != len(images):
            self._masking = Masking(masking.visible_ids.clone(), masking.predicted_ids.clone(), masking.patches)
            with torch.enable_grad():
                self._replay = crossmae.graphed(self.model, images, masking=self._masking)
            self.gradients[:] = [p.grad for p in self.model.parameters() if p.grad is not None]
        self._masking.visible_ids.copy_(masking.visible_ids)
        self._masking.predicted_ids.copy_(masking.predicted_ids)
        return self._replay(images).loss


def _contest(
    form: Form, config: Config, module: Callable[[], nn.Module], ours: Call, theirs: Call | None, **rest: Any
) -> Contest:
    """Of what takes inputs and a masking: eager, with kernels, and as the release formulates it; a step graphed too."""

    def solver(
        build: Call, implementation: Implementation = "reference", no_graph: str = "", double: bool = False
    ) -> Solver:
        built = copy.deepcopy(module()).double() if double else module()
        by = build(built)

        def call(inputs: Any, visible: Tensor, predicted: Tensor) -> Tensor:
            with nullcontext() if double else _autocast(form):
                return by(inputs, Masking(visible, predicted, config.patches))

        optimizer = _adamw(built) if STEP in rest["work"] else None
        return Solver(call, implementation, built, optimizer, no_graph, left=getattr(by, "gradients", None))

    contenders = {"reference": partial(solver, ours), "fused": partial(solver, ours, "triton")}
    if STEP in rest["work"]:
        graphed, reason = partial(GraphedLoss, form.device), "replays a graph of its own, which keeps its memory"
        contenders["fused, graphed"] = partial(solver, graphed, "triton", no_graph=reason)
    if theirs:
        contenders["release"] = partial(solver, theirs, no_graph=SYNCHRONIZES)
    exact = partial(solver, ours, double=True)
    return Contest(dtype=form.dtype, contenders=contenders, exact=exact, whole=True, **rest)


def _autocast(form: Form) -> AbstractContextManager[object]:
    """Autocast to the form's dtype; none for float32."""
    if form.dtype == torch.float32:
        return nullcontext()
    # Its cache of cast weights would outlive a captured graph.
    return torch.autocast(form.device.type, form.dtype, cache_enabled=False)


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    on_cuda = next(module.parameters()).is_cuda
    options: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "fused": on_cuda, "capturable": on_cuda}
    return torch.optim.AdamW(module.parameters(), **options)


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
