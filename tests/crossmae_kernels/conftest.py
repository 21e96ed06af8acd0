"""Kernel tests run on the GPU where there is one, and in Triton's interpreter elsewhere."""

import importlib
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def interpreter():
    """For tests of what only the interpreter shows."""
    if not INTERPRETED:
        pytest.skip("Triton compiles kernels here; the interpreter needs TRITON_INTERPRET=1")


@pytest.fixture(
    params=[
        pytest.param(("cpu", torch.float32), id="interpreter-float32"),
        pytest.param(("cpu", torch.float16), id="interpreter-float16"),
        pytest.param(("cpu", torch.bfloat16), id="interpreter-bfloat16"),
        pytest.param(("cuda", torch.float32), id="cuda-float32", marks=pytest.mark.gpu),
        pytest.param(("cuda", torch.float16), id="cuda-float16", marks=pytest.mark.gpu),
        pytest.param(("cuda", torch.bfloat16), id="cuda-bfloat16", marks=pytest.mark.gpu),
    ]
)
def place(request):
    """Device and dtype of a kernel test."""
    device, dtype = request.param
    if (device == "cpu") != INTERPRETED:
        pytest.skip("kernels are compiled here" if device == "cpu" else "no CUDA device")
    return device, dtype


@pytest.fixture
def bfloat16_anywhere(monkeypatch):
    """Nothing refuses bfloat16 in the interpreter, for tests in which no kernel runs."""
    for folder in ("cross_attention", "feature_mixing", "patches"):
        module = importlib.import_module(f"crossmae_kernels.{folder}.config")
        monkeypatch.setattr(module, "machine_refusals", lambda *_: [])


@pytest.fixture
def device():
    """Where kernels run here."""
    return "cpu" if INTERPRETED else "cuda"
