"""The decode benchmark: CrossMAE's decoder against MAE's, on the device at hand.

ViT-B at 224 px, random data. Before every timed round of a contender one round of MAE's decoder is timed, so that the
ratio of their times compares the same minute of the same machine.
"""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.release import release_decode
from crossmae.flops import decoder_flops_of_paper, decoder_macs
from crossmae.masking import Masking, random_masking
from crossmae.measure import bytes_saved_for_backward, wait_for_device
from crossmae.model import MaskedAutoencoder, create_model
from crossmae.model.decoders import CrossMAEDecoder

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = 256 if DEVICE.type == "cuda" else 8
ROUNDS = 20 if DEVICE.type == "cuda" else 5


@dataclass(frozen=True)
class Contender:
    """One decoder: whose, how many blocks, which share of the patches it predicts."""

    decoder: str
    blocks: int
    prediction_ratio: float

    def __str__(self) -> str:
        return f"{self.decoder}-{self.blocks}-{self.prediction_ratio}"


MAE = Contender("MAE", 8, 0.75)
SMALL_FORM = [
    MAE,
    *(Contender("CrossMAE", 12, ratio) for ratio in (0.25, 0.5, 0.75)),
    *(Contender("CrossMAE", blocks, 0.25) for blocks in (1, 4, 8)),
    Contender("CrossMAE, release", 12, 0.25),
]
CONTENDERS = SMALL_FORM + [
    pytest.param(Contender("CrossMAE", blocks, ratio), marks=pytest.mark.full)
    for blocks in (1, 4, 8)
    for ratio in (0.5, 0.75)
]


def precision() -> contextlib.AbstractContextManager[object]:
    """Autocast to bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if DEVICE.type == "cuda" else contextlib.nullcontext()


@functools.lru_cache(maxsize=2)  # the one at hand and MAE's
def model_of(contender: Contender) -> MaskedAutoencoder:
    """The model whose decoder competes; its encoder does not run."""
    torch.manual_seed(0)
    name = "mae_vit_base_patch16" if contender.decoder == "MAE" else "crossmae_vit_base_patch16"
    return create_model(name, decoder_depth=contender.blocks).to(DEVICE)


@functools.lru_cache(maxsize=2)  # the one at hand and MAE's
def forward_of(contender: Contender) -> Callable[[], Tensor]:
    """A call of the decoder on random feature maps."""
    model = model_of(contender)
    config, decoder = model.config, model.decoder
    masking = random_masking(BATCH, config.patches, 0.75, contender.prediction_ratio, device=DEVICE)
    keys = masking.visible_ids.shape[1] + 1
    maps = [
        torch.randn(BATCH, keys, config.encoder_width, device=DEVICE, requires_grad=True)
        for _ in config.feature_maps or (None,)
    ]

    decode: Callable[[list[Tensor], Masking], Tensor] = decoder
    if contender.decoder == "CrossMAE, release":
        assert isinstance(decoder, CrossMAEDecoder)
        decode = functools.partial(release_decode, decoder)

    def forward() -> Tensor:
        with precision():
            return decode(maps, masking)

    if decode is not decoder:  # the same numbers, or its time would mean nothing
        with precision():
            ours = decoder(maps, masking)
        torch.testing.assert_close(forward(), ours, rtol=1e-2, atol=1e-2 if DEVICE.type == "cuda" else 1e-4)
    return forward


def pass_of(contender: Contender, backward: bool) -> Callable[[], None]:
    """A timed pass: forward alone without autograd, or forward and backward with all gradients cleared."""
    forward, model = forward_of(contender), model_of(contender)

    def run() -> None:
        if not backward:
            with torch.no_grad():
                forward()
        else:
            model.zero_grad(set_to_none=True)
            forward().float().square().mean().backward()
        wait_for_device()

    return run


@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("contender", CONTENDERS, ids=str)
def test_decode(benchmark: Any, contender: Contender, direction: str) -> None:
    """Time one decoder, and MAE's beside it."""
    run = pass_of(contender, direction != "forward")
    baseline = pass_of(MAE, direction != "forward")
    baseline_seconds = []

    def time_baseline() -> None:
        begun = time.perf_counter()
        baseline()
        baseline_seconds.append(time.perf_counter() - begun)

    config = model_of(contender).config
    macs = decoder_macs(config, contender.prediction_ratio)
    mae = model_of(MAE).config
    benchmark.pedantic(run, setup=None if contender == MAE else time_baseline, rounds=ROUNDS, warmup_rounds=1)
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        suite="decode",
        problem=f"{contender.decoder}, ViT-B/16, blocks {contender.blocks}, predicts {contender.prediction_ratio}",
        contender=contender.decoder,
        about={"model": "ViT-B/16", "batch": BATCH},
        decoder=contender.decoder,
        blocks=contender.blocks,
        prediction_ratio=contender.prediction_ratio,
        direction=direction,
        device=torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        dtype="bfloat16 autocast" if DEVICE.type == "cuda" else "float32",
        torch=torch.__version__,
        batch=BATCH,
        macs=macs,
        macs_ratio=decoder_macs(mae) / macs,
        paper_ratio=decoder_flops_of_paper(mae) / decoder_flops_of_paper(config, contender.prediction_ratio),
        mae_seconds=median if contender == MAE else statistics.median(baseline_seconds[1:]),
        saved_bytes=bytes_saved_for_backward(forward_of(contender), model_of(contender)) // BATCH,
    )
    assert median > 0
