"""What stands for kernels whose machine code could not be predicted."""

import pytest
import torch

from crossmae.planning.step import _kernels
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.operations import Operation


def test_products_of_float32_arguments_are_in_the_step_s_dtype():
    """A TFLOP of float32 arguments under autocast takes an H100's tensor cores 1.3 ms at four fifths of 960 TFLOP/s."""
    operation = Operation("mlp_backward", True, torch.float32, 10**12, 0)
    (kernel,) = _kernels(operation, DEVICES["h100"], torch.bfloat16, [{"unpredicted": "it has no end"}])
    assert kernel.method == "ceilings"
    assert kernel.microseconds == pytest.approx(1e6 / (0.8 * 960), rel=0.01)
