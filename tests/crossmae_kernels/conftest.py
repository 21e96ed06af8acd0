"""Kernel tests run on the GPU where there is one, and in Triton's interpreter elsewhere."""

import contextlib
import os

import pytest
import torch
from places import places

from crossmae_kernels.runtime import records, tuning
from crossmae_kernels.runtime.device import KERNEL_DTYPES
from crossmae_kernels.runtime.interpreter import teach

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def interpreter():
    """For tests of what only the interpreter shows."""
    if not INTERPRETED:
        pytest.skip("Triton compiles kernels here; the interpreter needs TRITON_INTERPRET=1")


@pytest.fixture(params=places(*KERNEL_DTYPES))
def place(request):
    """Device and dtype of a kernel test."""
    device, dtype = request.param
    if (device == "cpu") != INTERPRETED:
        pytest.skip("kernels are compiled here" if device == "cpu" else "no CUDA device")
    if INTERPRETED:
        # As operators do, around which some tests go.
        teach()
    return device, dtype


@pytest.fixture
def device():
    """Where kernels run here."""
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Every device counts as a GPU on which nothing was measured yet; records lie in ``tmp_path``."""
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(tuning, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "_spent", 0.0)
