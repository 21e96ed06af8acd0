"""A training step on a CPU: CrossMAE, the release's formulation of it, and MAE, side by side.

``python -m benchmarks.cpu`` prints, for the whole model and for the decoder alone, a forward and a backward pass in
float32 and under autocast to bfloat16: times, how near products come to the rate that this CPU reaches in a square one,
and the ratios to the release's formulation and to MAE beside the ratio of their FLOPs. ``--compile`` compiles all of
them. AdamW is left out: it is the same for all and knows nothing of precision.

Contenders run in turn and the shortest of the rounds counts. On one thread the clock is the process's own CPU time,
which other work on the machine does not stretch by more than it slows memory down; on several it is the wall's.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.release import release_decode, release_model_loss
from crossmae.masking import Masking, random_masking
from crossmae.model import MaskedAutoencoder, create_model
from crossmae.model.decoders import CrossMAEDecoder
from crossmae_kernels.command import run_command

MASK_RATIO, PREDICTION_RATIO = 0.75, 0.25
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS, RELEASE, MAE = "CrossMAE", "release", "MAE"
SQUARE = 2048  # of the product whose rate the others are compared with

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Contender:
    """A loss, and the module whose parameters are trained by it."""

    module: nn.Module
    loss: Loss


def contenders(part: str, size: str, batch: int, compiled: bool) -> dict[str, Contender]:
    """Ours, the release's and MAE's, of the ``model`` or of the ``decoder``, on the same images and visible patches."""
    torch.manual_seed(0)
    crossmae, mae = create_model(f"crossmae_vit_{size}"), create_model(f"mae_vit_{size}")
    config = crossmae.config
    images, noise = torch.randn(batch, config.channels, *config.image_size), torch.rand(batch, config.patches)
    some = random_masking(batch, config.patches, MASK_RATIO, PREDICTION_RATIO, noise=noise)
    every = random_masking(batch, config.patches, MASK_RATIO, MASK_RATIO, noise=noise)

    def prepared(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.compile(call, dynamic=False) if compiled else call

    def model(of: MaskedAutoencoder, masking: Masking, by: Callable[..., Tensor]) -> Contender:
        call = prepared(by)
        return Contender(of, lambda: call(of, images, masking))

    def decoder(of: MaskedAutoencoder, masking: Masking, by: Callable[..., Tensor]) -> Contender:
        with torch.no_grad():
            maps = [x.requires_grad_() for x in of.encoder(images, masking.visible_ids)]
        call = prepared(lambda decoder, maps, masking: by(decoder, maps, masking).float().square().mean())
        return Contender(of.decoder, lambda: call(of.decoder, maps, masking))

    if part == "model":
        return {
            OURS: model(crossmae, some, _model_loss),
            RELEASE: model(crossmae, some, release_model_loss),
            MAE: model(mae, every, _model_loss),
        }
    assert isinstance(crossmae.decoder, CrossMAEDecoder)
    return {
        OURS: decoder(crossmae, some, lambda decoder, *arguments: decoder(*arguments)),
        RELEASE: decoder(crossmae, some, release_decode),
        MAE: decoder(mae, every, lambda decoder, *arguments: decoder(*arguments)),
    }


def _model_loss(model: MaskedAutoencoder, images: Tensor, masking: Masking) -> Tensor:
    return model(images, masking=masking).loss


def autocast(dtype: torch.dtype) -> AbstractContextManager[object]:
    """None for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


def step(contender: Contender, dtype: torch.dtype) -> None:
    """A forward and a backward pass; gradients are left where an optimizer would find them."""
    contender.module.zero_grad(set_to_none=True)
    with autocast(dtype):
        loss = contender.loss()
    loss.backward()


def shortest(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each call's shortest round, after one of warm-up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = clock()
            call()
            if number:
                found[name] = min(found[name], clock() - begun)
    return found


def product_rate(dtype: torch.dtype) -> float:
    """FLOP a second of a square product."""
    x = torch.randn(SQUARE, SQUARE).to(dtype)
    return 2 * SQUARE**3 / shortest({"product": lambda: x @ x}, 5)["product"]


def flops_of(contender: Contender) -> int:
    """Of a forward and a backward pass, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        step(contender, torch.float32)
    return counter.get_total_flops()


def measure(part: str, size: str, batch: int, dtype: str, compiled: bool, rounds: int) -> list[list[str]]:
    """A row of the table for each contender."""
    torch._dynamo.reset()
    competing = contenders(part, size, batch, compiled)
    flops = {name: flops_of(contender) for name, contender in contenders(part, size, batch, compiled=False).items()}
    calls = {name: lambda c=c: step(c, DTYPES[dtype]) for name, c in competing.items()}
    seconds, rate = shortest(calls, rounds), product_rate(DTYPES[dtype])
    return [
        [
            part,
            dtype,
            name,
            f"{flops[name] / 1e9:,.0f}",
            f"{1e3 * seconds[name]:,.0f}",
            f"{flops[name] / seconds[name] / rate:.0%} of {rate / 1e9:,.0f}",
            f"{seconds[RELEASE] / seconds[name]:.2f}" if name != MAE else "",
            f"{seconds[MAE] / seconds[name]:.2f}",
            f"{flops[MAE] / flops[name]:.2f}",
        ]
        for name in competing
    ]


HEADERS = [
    "part",
    "precision",
    "contender",
    "GFLOP",
    "ms",
    "share of the product rate, GFLOP/s",
    "speed-up over the release's formulation",
    "speed-up over MAE",
    "times fewer FLOPs than MAE",
]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--size", default="base_patch16", help="end of a model's name (%(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile all contenders")
    parser.add_argument("--part", choices=("model", "decoder"), action="append", help="may be repeated (both)")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="may be repeated (both)")
    chosen = parser.parse_args()
    if min(chosen.batch, chosen.threads, chosen.rounds) < 1:
        raise ValueError(
            f"batch, threads and rounds must be positive, got {chosen.batch}, {chosen.threads}, {chosen.rounds}"
        )
    torch.set_num_threads(chosen.threads)
    print(
        f"{'Compiled' if chosen.compile else 'Eager'}, ViT {chosen.size}, batch {chosen.batch}, {chosen.threads} "
        f"threads, {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}\n",
        flush=True,
    )
    for part in chosen.part or ("model", "decoder"):
        for dtype in chosen.dtype or DTYPES:
            rows = measure(part, chosen.size, chosen.batch, dtype, chosen.compile, chosen.rounds)
            print(tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True), end="\n\n", flush=True)


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.cpu", main))
