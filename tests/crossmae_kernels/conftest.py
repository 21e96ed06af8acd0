"""Kernel tests run on the GPU where there is one, and in Triton's interpreter elsewhere."""

import os

import pytest
from places import places

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
