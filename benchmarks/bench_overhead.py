"""What Python takes of a call: each op and a whole decoder, with everything done but the launches.

Kernels are replaced by a stand-in that launches nothing. What remains is the host's part: checks, dispatch, autograd's
record, allocations, the launcher. Where kernels are short, a GPU waits for it. Triton's own launcher is not in it, and
calls of library products are, on tiny tensors in float32: a CPU takes 4 us for such a product, 31 in float16. Timed is
what the process itself computes, so that others on the machine disturb little; read the minimum.
"""

import importlib
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import crossmae_kernels
from crossmae import Config, MaskedAutoencoder, random_masking
from crossmae_kernels.runtime import device, tuning
from crossmae_kernels.runtime.dispatch import default_implementation
from crossmae_kernels.testing import Draw
from crossmae_kernels.testing.problems import tiny

BATCH, WIDTH, HEADS = 2, 32, 2


class LaunchesNothing:
    """In the place of a kernel."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **constants: None


@pytest.fixture(autouse=True)
def _no_launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    torch.set_num_threads(1)  # others that spin are the process's time too: 4 ms for a GELU of 480 numbers
    monkeypatch.setattr(device, "interpreted", lambda: True)
    for found in pkgutil.walk_packages(crossmae_kernels.__path__, "crossmae_kernels."):
        if found.name.endswith(".kernels") or ".primitives." in found.name:
            importlib.import_module(found.name)
    for name, module in list(sys.modules.items()):
        if name.startswith("crossmae_kernels."):
            for attribute, value in list(vars(module).items()):
                if type(value).__name__ in ("JITFunction", "InterpretedFunction"):
                    monkeypatch.setattr(module, attribute, LaunchesNothing())
    # As on a GPU, each form is looked up; what nothing was measured for is known to be the rule's.
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "stand-in")
    with tuning.tuning_mode("recall"):
        yield


@pytest.mark.parametrize("op", crossmae_kernels.__all__)
@pytest.mark.benchmark(group="host time of a call", timer=time.process_time)
def test_call_of_op(benchmark: Any, op: str) -> None:
    """The first of its tiny problems, forward, with a record for the backward pass."""
    problem = next(problem for problem in tiny(Draw()) if problem.op == op)
    benchmark(partial(problem.by("triton"), **problem.leaves(torch.float32)))


@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.benchmark(group="host time of a decoder", timer=time.process_time)
def test_call_of_decoder(benchmark: Any, direction: str) -> None:
    """A decoder as deep as ViT-B's, with as many feature maps, narrow."""
    config = Config(
        image_size=(8, 8), patch_size=2, encoder_width=WIDTH, encoder_heads=HEADS, decoder_width=WIDTH,
        decoder_heads=HEADS, feature_maps=tuple(range(13)),
    )  # fmt: skip
    decoder = MaskedAutoencoder(config).decoder
    masking = random_masking(BATCH, config.patches, 0.75, 0.25)
    maps = [torch.zeros(BATCH, 5, WIDTH, requires_grad=True) for _ in range(13)]
    upstream = torch.zeros(BATCH, 4, config.patch_values)

    def call() -> None:
        predicted = decoder(maps, masking)
        if direction == "forward and backward":
            torch.autograd.backward(predicted, upstream)

    with default_implementation("triton"):
        benchmark(call)
