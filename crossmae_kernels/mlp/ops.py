"""The MLP as a PyTorch operator: schema, fake implementation, autograd, FLOPs.

``impl``'s choice was made before: these operators run the kernels. Weights and biases come folded and in the dtype
to compute in; ``x`` may be float32 beside them.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.autocast import without_autocast
from crossmae_kernels.runtime.flops import Shape, flop_formula, linear_flops

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "mlp(Tensor x, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, float eps, bool keep,"
    " bool keep_hidden) -> (Tensor out, Tensor x_hat, Tensor rstd, Tensor hidden)"
)
_library.define(
    "mlp_backward(Tensor dout, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor x_hat, Tensor rstd,"
    " Tensor? hidden, bool[5] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    save_hidden: bool,
) -> Tensor:
    """``x + fc2(gelu(fc1(x_hat)))`` in the dtype of ``x``; arguments are taken as checked."""
    tensors = (x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return torch.ops.crossmae_kernels.mlp(*tensors, eps, keep, keep and save_hidden)[0]


@without_autocast
def _forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    keep: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from crossmae_kernels.mlp import launch

    return launch.forward(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, keep, keep_hidden)


def _forward_fake(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    keep: bool,
    keep_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, width = fc1_weight.shape
    rows = x.numel() // width
    return (
        x.new_empty(x.shape),
        fc1_weight.new_empty((rows, width) if keep else (0,)),
        fc1_weight.new_empty(rows if keep else 0, dtype=torch.float32),
        fc1_weight.new_empty((rows, hidden) if keep_hidden else (0,)),
    )


@without_autocast
def _backward(
    dout: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    """Gradients of x, fc1's weight and bias, fc2's weight and bias; an empty tensor for each one not wanted."""
    from crossmae_kernels.mlp import launch

    gradients = launch.backward(dout, fc1_weight, fc1_bias, fc2_weight, x_hat, rstd, hidden, wanted)
    return tuple(x_hat.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _backward_fake(
    dout: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    hidden_width, width = fc1_weight.shape
    shapes = ((hidden_width, width), (hidden_width,), (width, hidden_width), (width,))
    return (
        dout.new_empty(dout.shape) if wanted[0] else x_hat.new_empty(0),
        *(x_hat.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted[1:], strict=True)),
    )


@flop_formula(torch.ops.crossmae_kernels.mlp)
def _forward_flops(x: Shape, fc1_weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * linear_flops(x, fc1_weight)


@flop_formula(torch.ops.crossmae_kernels.mlp_backward)
def _backward_flops(
    dout: Shape,
    fc1_weight: Shape,
    fc1_bias: Shape | None,
    fc2_weight: Shape,
    x_hat: Shape,
    rstd: Shape,
    hidden: Shape | None,
    wanted: list[bool],
    **_: Any,
) -> int:
    # All but fc2's own gradients come through the hidden layer's.
    of_hidden, of_x, of_fc1, of_fc2 = any(wanted[:3]), wanted[0], wanted[1], wanted[3]
    return (of_hidden + of_x + of_fc1 + of_fc2) * linear_flops(x_hat, fc1_weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, fc1_weight, fc1_bias, fc2_weight, _, _, _, ctx.keeps_hidden = inputs
    _, x_hat, rstd, hidden = output
    ctx.mark_non_differentiable(x_hat, rstd, hidden)
    ctx.set_materialize_grads(False)
    # fc1's bias is needed to find the hidden layer again.
    kept = [None, hidden] if ctx.keeps_hidden else [fc1_bias, None]
    ctx.save_for_backward(fc1_weight, fc2_weight, x_hat, rstd, *kept)


def _autograd(ctx: Any, dout: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:5]
    if dout is None or not any(wanted):
        return (None,) * 8
    fc1_weight, fc2_weight, x_hat, rstd, fc1_bias, hidden = ctx.saved_tensors
    gradients = torch.ops.crossmae_kernels.mlp_backward(
        dout, fc1_weight, fc1_bias, fc2_weight, x_hat, rstd, hidden, wanted
    )
    return (*(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)), None, None, None)


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("mlp: the kernels have no second derivative; impl='reference' has one")


for _device in ("CPU", "CUDA"):
    _library.impl("mlp", _forward, _device)
    _library.impl("mlp_backward", _backward, _device)
torch.library.register_fake(f"{NAMESPACE}::mlp", _forward_fake, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::mlp_backward", _backward_fake, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::mlp", _autograd, setup_context=_setup_context, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::mlp_backward", _no_second_derivative, lib=_library)
