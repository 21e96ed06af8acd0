"""float32 as PyTorch is set to multiply it: exactly, or in TF32."""

import subprocess
import sys
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from cases import FORMS, OPERATORS, Cases
from torch.utils._pytree import tree_leaves

from crossmae_kernels.runtime.dispatch import form_of

SETTINGS = {
    "pass": "ieee",
    "torch.set_float32_matmul_precision('high')": "tf32",
    "torch.set_float32_matmul_precision('medium')": "tf32",
    "torch.set_float32_matmul_precision('high'); torch.set_float32_matmul_precision('highest')": "ieee",
    "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "tf32",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
    "torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
    "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
}

ASK = """
import os, sys, warnings, torch
from crossmae_kernels.runtime.launch import input_precision
warnings.simplefilter("error")
for setting in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(setting, {"torch": torch})
        print(input_precision(torch.float32), input_precision(torch.float16), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_every_setting_of_pytorch_is_read_and_none_raises():
    done = subprocess.run([sys.executable, "-c", ASK, *SETTINGS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{precision} ieee" for precision in SETTINGS.values()]


@pytest.fixture(params=["high", "highest"])
def setting(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def as_tf32(values):
    """float32 rounded to 10 bits of mantissa."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x0FFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


# Operators without a product of our own: they move bytes, or the library multiplies.
WITHOUT = {
    "fold_norm", "fold_norms", "fold_norm_backward", "gather_patches", "gather_patches_backward", "patch_loss",
    "patch_loss_backward", "project_backward", "linear_residual_backward", "norm_linear_backward",
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(set(OPERATORS) - WITHOUT))
def test_every_product_of_a_kernel_is_told_and_yields_what_tf32_does(interpreter, setting, dtype, name):
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder

    told, dot = set(), InterpreterBuilder.create_dot

    def rounding(self, left, right, total, precision, *others):
        told.add(precision)
        if precision == ir.INPUT_PRECISION.TF32:
            left, right = (type(t)(as_tf32(t.data), t.dtype) for t in (left, right))
        return dot(self, left, right, total, precision, *others)

    torch.manual_seed(0)
    operator = getattr(torch.ops.crossmae_kernels, name)
    for arguments in getattr(Cases("cpu", dtype, 1), name)():
        if isinstance(arguments[-1], list) and not all(arguments[-1]):
            continue
        torch.set_float32_matmul_precision(setting)
        told.clear()
        with form_of(name, "tiled") if name in FORMS else nullcontext():
            with mock.patch.object(InterpreterBuilder, "create_dot", rounding):
                found = tree_leaves(operator(*arguments))
            torch.set_float32_matmul_precision("highest")
            exact = tree_leaves(operator(*arguments))
        in_tf32 = setting == "high" and dtype == torch.float32
        assert told == {ir.INPUT_PRECISION.TF32 if in_tf32 else ir.INPUT_PRECISION.IEEE}
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True) if b.numel()]
        assert max(errors) < 4e-3
        assert (max(errors) > 1e-5) == in_tf32
