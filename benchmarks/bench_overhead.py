"""What Python takes of a call: each op and a whole decoder, with everything done but the launches.

Kernels are replaced by a stand-in that launches nothing. What remains is the host's part: checks, dispatch, autograd's
record, allocations, the launcher. Where kernels are short, a GPU waits for it. Triton's own launcher is not in it, and
calls of library products are, on tensors so small that they cost little more than the call. Timed is what the process
itself computes, so that others on the machine disturb little; read the minimum.
"""

import importlib
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import crossmae_kernels as ck
from crossmae import Config, MaskedAutoencoder, random_masking
from crossmae_kernels.runtime import device, tuning
from crossmae_kernels.runtime.dispatch import default_implementation

BATCH, TOKENS, KEYS, WIDTH, HIDDEN, HEADS = 2, 4, 8, 32, 64, 2


class LaunchesNothing:
    """In the place of a kernel."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **constants: None


@pytest.fixture(autouse=True)
def _no_launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(device, "interpreted", lambda: True)
    for found in pkgutil.walk_packages(ck.__path__, "crossmae_kernels."):
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


def parameter(*shape: int) -> torch.Tensor:
    """Zeros that want a gradient, float16."""
    return torch.zeros(shape, dtype=torch.float16, requires_grad=True)


def calls() -> dict[str, Callable[[], Any]]:
    """Each op, ready to be called."""
    x, norm, bias = parameter(BATCH, TOKENS, WIDTH), parameter(WIDTH), parameter(WIDTH)
    square, fc1, fc2, fc1_bias = (parameter(*s) for s in ((WIDTH, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN), (HIDDEN,)))
    key, key_value = parameter(BATCH, KEYS, WIDTH), parameter(BATCH, KEYS, 2 * WIDTH)
    qkv = parameter(BATCH, TOKENS, 3 * WIDTH)
    maps, mixing, norms = [parameter(BATCH, KEYS, WIDTH) for _ in range(4)], parameter(3, 4), parameter(3, WIDTH)
    weights, biases = [parameter(2 * WIDTH, WIDTH) for _ in range(3)], [parameter(2 * WIDTH) for _ in range(3)]
    images = torch.zeros(BATCH, 3, 8, 8, dtype=torch.float16)
    ids = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
    prediction = parameter(BATCH, TOKENS, 48)
    return {
        "cross_attention": lambda: ck.cross_attention(x, key, key, HEADS, impl="triton"),
        "cross_attention_kvpacked": lambda: ck.cross_attention_kvpacked(x, key_value, HEADS, impl="triton"),
        "self_attention_qkvpacked": lambda: ck.self_attention_qkvpacked(qkv, HEADS, impl="triton"),
        "mlp": lambda: ck.mlp(x, norm, norm, fc1, fc1_bias, fc2, bias, impl="triton"),
        "norm_linear": lambda: ck.norm_linear(x, square, bias, norm, norm, impl="triton"),
        "linear_residual": lambda: ck.linear_residual(x, square, bias, x, impl="triton"),
        "mix_feature_maps": lambda: ck.mix_feature_maps(maps, mixing, impl="triton"),
        "project_feature_maps": lambda: ck.project_feature_maps(
            maps, mixing, norms, norms, weights, biases, impl="triton"
        ),
        "fold_norm": lambda: ck.fold_norm(square, bias, norm, norm, impl="triton"),
        "gather_patches": lambda: ck.gather_patches(images, ids, 4, impl="triton"),
        "patch_loss": lambda: ck.patch_loss(prediction, images, ids, 4, True, impl="triton"),
    }


@pytest.mark.parametrize("op", calls())
@pytest.mark.benchmark(group="host time of a call", timer=time.process_time)
def test_call_of_op(benchmark: Any, op: str) -> None:
    """Forward, with a record for the backward pass."""
    benchmark(calls()[op])


@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.benchmark(group="host time of a decoder", timer=time.process_time)
def test_call_of_decoder(benchmark: Any, direction: str) -> None:
    """A decoder as deep as ViT-B's, with as many feature maps, narrow."""
    config = Config(
        image_size=(8, 8), patch_size=2, encoder_width=WIDTH, encoder_heads=HEADS, decoder_width=WIDTH,
        decoder_heads=HEADS, feature_maps=tuple(range(13)),
    )  # fmt: skip
    decoder = MaskedAutoencoder(config).half().decoder
    masking = random_masking(BATCH, config.patches, 0.75, 0.25)
    maps = [parameter(BATCH, 5, WIDTH) for _ in range(13)]
    upstream = torch.zeros(BATCH, 4, config.patch_values, dtype=torch.float16)

    def call() -> None:
        predicted = decoder(maps, masking)
        if direction == "forward and backward":
            torch.autograd.backward(predicted, upstream)

    with default_implementation("triton"):
        benchmark(call)
