"""Whole models and their decoders as problems: what ``decode``, ``launch`` and ``step`` share."""

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain import SYNCHRONIZES, plain_decode, plain_model_loss
from benchmarks.problem import BOTH, FORWARD, STEP, Arguments, Form, Problem, Random, Solver, Work, compiled
from benchmarks.suites.shapes import MASK_RATIO, config_of, model_name
from crossmae.config import Config
from crossmae.flops import decoder_macs
from crossmae.masking import Masking, mask_counts
from crossmae.model import MaskedAutoencoder


def decode_problem(
    suite: str,
    form: Form,
    size: str,
    batch: int,
    family: str = "crossmae",
    blocks: int = 12,
    prediction_ratio: float = 0.25,
    image_size: int | None = None,
    plain: bool = False,
) -> Problem:
    """The decoder on random float32 feature maps, which is what an encoder hands out under autocast."""
    config = config_of(form, f"{family}_vit_{size}", image_size, decoder_depth=blocks)
    visible, predicted = mask_counts(config.patches, MASK_RATIO, prediction_ratio)
    maps = len(config.feature_maps or (None,))

    def arguments(batch: int, random: Random) -> Arguments:
        shape = (batch, visible + 1, config.encoder_width)
        drawn = {f"map_{index}": random.normal(*shape, dtype=torch.float32) for index in range(maps)}
        drawn["visible"], drawn["predicted"] = random.masks(batch, visible, predicted, config.patches)
        return drawn

    def decode(by: Callable[..., Tensor], visible: Tensor, predicted: Tensor, **by_name: Tensor) -> Tensor:
        masking = Masking(visible, predicted, config.patches)
        # The double-precision judge keeps its own precision.
        with autocast(form) if by_name["map_0"].dtype == torch.float32 else contextlib.nullcontext():
            return by(list(by_name.values()), masking)

    moved = batch * ((visible + 1) * config.encoder_width * maps * 4 + predicted * config.patch_values * 4)
    flops = 2.0 * batch * decoder_macs(config, prediction_ratio)
    return _problem(
        suite,
        form,
        {
            "decoder": "MAE" if family == "mae" else "CrossMAE",
            "model": model_name(size),
            "pixels": config.image_size[0],
            "blocks": config.decoder_depth,
            "predicts": prediction_ratio,
        },
        batch,
        arguments,
        module=lambda: _model(config, form.device).decoder,
        ours=lambda decoder: functools.partial(decode, decoder),
        plain=(lambda decoder: functools.partial(decode, functools.partial(plain_decode, decoder))) if plain else None,
        work={FORWARD: Work(moved, flops), BOTH: Work(3 * moved, 3 * flops)},
    )


def step_problem(form: Form, size: str, batch: int, family: str = "crossmae", plain: bool = False) -> Problem:
    """A whole pretraining step on random images: masks are given, AdamW updates every parameter."""
    config = config_of(form, f"{family}_vit_{size}")
    prediction_ratio = 0.25 if family == "crossmae" else MASK_RATIO
    visible, predicted = mask_counts(config.patches, MASK_RATIO, prediction_ratio)

    def arguments(batch: int, random: Random) -> Arguments:
        images = random.normal(batch, config.channels, *config.image_size, dtype=torch.float32)
        seen, asked = random.masks(batch, visible, predicted, config.patches)
        return {"images": images, "visible": seen, "predicted": asked}

    def loss(by: Callable[..., Tensor], images: Tensor, visible: Tensor, predicted: Tensor) -> Tensor:
        with autocast(form) if images.dtype == torch.float32 else contextlib.nullcontext():
            return by(images, Masking(visible, predicted, config.patches))

    def ours(model: Any) -> Callable[..., Tensor]:
        return functools.partial(loss, lambda images, masking: model(images, masking=masking).loss)

    macs = _encoder_macs(config, visible) + decoder_macs(config, prediction_ratio)
    return _problem(
        "step",
        form,
        {"decoder": "MAE" if family == "mae" else "CrossMAE", "model": model_name(size), "predicts": prediction_ratio},
        batch,
        arguments,
        module=lambda: _model(config, form.device),
        ours=ours,
        plain=(lambda model: functools.partial(loss, functools.partial(plain_model_loss, model))) if plain else None,
        work={STEP: Work(0, 6.0 * batch * macs)},
        constants=frozenset({"images"}),
    )


def autocast(form: Form) -> contextlib.AbstractContextManager[object]:
    """Autocast to the form's dtype; none for float32."""
    if form.dtype == torch.float32:
        return contextlib.nullcontext()
    # Its cache of cast weights would outlive a captured graph.
    return torch.autocast(form.device.type, form.dtype, cache_enabled=False)


def _encoder_macs(config: Config, visible: int) -> int:
    """Multiply-accumulates of the encoder for an image with so many visible patches."""
    tokens, width = visible + 1, config.encoder_width
    block = tokens * width * (4 * width + 2 * int(width * config.mlp_ratio)) + 2 * tokens**2 * width
    return visible * config.patch_values * width + config.encoder_depth * block


@functools.lru_cache(maxsize=1)  # problems come one after another, and several models would fill the device
def _model(config: Config, device: torch.device) -> MaskedAutoencoder:
    """A model with random values in every bias and norm."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(device)


def _problem(
    suite: str,
    form: Form,
    about: dict[str, Any],
    batch: int,
    arguments: Callable[[int, Random], Arguments],
    module: Callable[[], Any],
    ours: Callable[[Any], Callable[..., Tensor]],
    plain: Callable[[Any], Callable[..., Tensor]] | None,
    work: dict[Any, Work],
    constants: frozenset[str] = frozenset(),
) -> Problem:
    def solver(call: Callable[[Any], Callable[..., Tensor]], implementation: Any, synchronizes: str = "") -> Solver:
        built = module()
        if STEP in work:  # a step changes the weights, so everybody has their own
            built = copy.deepcopy(built)
        parameters = tuple(built.parameters())
        optimizer = None
        if STEP in work:
            on_cuda = form.device.type == "cuda"
            optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), fused=on_cuda, capturable=on_cuda)
        return Solver(call(built), implementation, parameters, optimizer, synchronizes)

    def exact() -> Solver:
        double = copy.deepcopy(module()).double()
        return Solver(ours(double), "reference", tuple(double.parameters()))

    reference = functools.partial(solver, ours, "reference")
    contenders: dict[str, Callable[[], Solver]] = {
        "reference": reference,
        "fused": functools.partial(solver, ours, "triton"),
    }
    if plain is not None:
        by_plain = functools.partial(solver, plain, "reference", SYNCHRONIZES)
        contenders["plain"] = by_plain
    contenders |= compiled(form, "reference", reference)
    if plain is not None:
        contenders |= compiled(form, "plain", by_plain)
    return Problem(
        suite=suite,
        about=about,
        batch=batch,
        dtype=form.dtype,
        arguments=arguments,
        contenders=contenders,
        ours=frozenset({"reference", "fused"}),
        exact=exact,
        work=work,
        constants=constants,
        whole=True,
    )
