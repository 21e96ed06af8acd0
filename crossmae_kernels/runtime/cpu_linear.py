"""Large linear layers in float32 on a CPU: by oneDNN where the library that PyTorch takes is slower.

PyTorch takes MKL, which leaves AVX512 unused on CPUs that are not Intel's: on two threads of a Zen 5 linear layers of
ViT-B run at 200 GFLOP/s, and at 440 by oneDNN, which PyTorch has for 16 bits. A process's first large layer times
both, for some 10 ms, and oneDNN serves if it is clearly faster. As both round differently, it never does in PyTorch's
deterministic mode, nor with ``CROSSMAE_KERNELS_TUNE=off``.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.runtime import tuning
from crossmae_kernels.runtime.autocast import autocasts
from crossmae_kernels.runtime.device import constant_when_compiled
from crossmae_kernels.runtime.flops import Shape, flop_formula, linear_flops

# Multiply-accumulates from which a call gains more than the 20 us that it costs: MKL takes 90 us for so many.
LEAST_MACS = 2**23

# oneDNN must be so many times as fast, which leaves nothing to chance: a Zen 5 has 2.2, and where both use the same
# instructions 1 is to be expected.
MARGIN = 1.3

_faster: bool | None = None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: ``(..., I)``, ``(O, I)``, ``(O,)`` -> ``(..., O)``, differentiable any number of times."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if _takes(tensors) and x.numel() * weight.shape[0] >= LEAST_MACS and onednn_is_faster():
        product: Tensor = torch.ops.crossmae_kernels.cpu_linear(x, weight, bias)
        return product
    return F.linear(x, weight, bias)


LINEAR: dict[str, Callable[..., Tensor]] = {"reference": F.linear, "cpu": linear}
"""What an op's reference multiplies by, as the implementation that ``dispatch.choose`` returns."""


def _takes(tensors: tuple[Tensor, ...]) -> bool:
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" and type(t) in _PLAIN for t in tensors)
        and not autocasts("cpu")
        and not _transformed()
    )


_PLAIN = (Tensor, torch.nn.Parameter)


@constant_when_compiled
def _transformed() -> bool:
    """Whether somebody wants PyTorch's own operators: modes, transforms, forward-mode derivatives, exporters."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.compiler.is_exporting()
    )


@constant_when_compiled
def onednn_is_faster() -> bool:
    """Whether it is on this CPU, and may be used."""
    global _faster
    if tuning.mode() == "off" or torch.are_deterministic_algorithms_enabled():
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if _faster is None:
        _faster = _measured() > MARGIN
    return _faster


def _measured() -> float:
    """How many times as fast oneDNN is; 0 if this build of PyTorch lacks the operator."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0.0
    with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        x, weight = (torch.ones(rows, 512, dtype=torch.float32, device="cpu") for rows in (256, 512))
        calls: dict[Callable[..., Tensor], float] = {F.linear: float("inf"), _by_onednn: float("inf")}
        for _ in range(8):
            for call in calls:
                began = time.perf_counter()
                call(x, weight)
                calls[call] = min(calls[call], time.perf_counter() - began)
    return calls[F.linear] / calls[_by_onednn]


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dtype != torch.float32:  # a mode that looks on at the backward pass alone may compute it in another
        return F.linear(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    rows = dout.reshape(-1, dout.shape[-1])
    need_x, need_weight, need_bias = ctx.needs_input_grad
    operator = torch.ops.crossmae_kernels.cpu_linear
    return (
        operator(dout, weight.T, None) if need_x else None,
        operator(rows.T, x.reshape(-1, x.shape[-1]).T, None) if need_weight else None,
        rows.sum(0) if need_bias else None,
    )


_library = torch.library.Library("crossmae_kernels", "FRAGMENT")
_library.define("cpu_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("cpu_linear", _by_onednn, "CPU")
torch.library.register_fake("crossmae_kernels::cpu_linear", _fake, lib=_library)
torch.library.register_autograd("crossmae_kernels::cpu_linear", _backward, setup_context=_save, lib=_library)


@flop_formula(torch.ops.crossmae_kernels.cpu_linear)
def _flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return linear_flops(x, weight)
