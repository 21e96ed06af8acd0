"""The MLP's operators: schemas, fakes, FLOPs, what is saved for the backward pass.

Weights and biases come folded and in the dtype to compute in; ``x`` may be float32 beside them.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.flops import Shape, linear_flops
from crossmae_kernels.runtime.operators import Operator, need_gradient


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
    save = need_gradient(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return _forward(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, save, save and save_hidden)[0]


def _forward_fake(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    save: bool,
    save_hidden: bool,
) -> tuple[Tensor | None, ...]:
    hidden, width = fc1_weight.shape
    rows = x.numel() // width
    return (
        x.new_empty(x.shape),
        fc1_weight.new_empty(rows, width) if save else None,
        fc1_weight.new_empty(rows, dtype=torch.float32) if save else None,
        fc1_weight.new_empty(rows, hidden) if save_hidden else None,
    )


def _forward_flops(x: Shape, fc1_weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * linear_flops(x, fc1_weight)


def _backward_fake(
    dout: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    width = fc2_weight.shape[:1]
    shapes = (fc1_weight.shape, fc1_weight.shape[:1], fc2_weight.shape, width)
    return (
        dout.new_empty(dout.shape) if output_mask[0] else None,
        *(x_hat.new_empty(shape) if asked else None for shape, asked in zip(shapes, output_mask[1:], strict=True)),
    )


def _backward_flops(
    dout: Shape,
    fc1_weight: Shape,
    fc1_bias: Shape | None,
    fc2_weight: Shape,
    x_hat: Shape,
    rstd: Shape,
    hidden: Shape | None,
    output_mask: list[bool],
    **_: Any,
) -> int:
    # All but fc2's own gradients come through the hidden layer's.
    of_hidden, of_x, of_fc1, of_fc2 = any(output_mask[:3]), output_mask[0], output_mask[1], output_mask[3]
    return (of_hidden + of_x + of_fc1 + of_fc2) * linear_flops(x_hat, fc1_weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, fc1_weight, fc1_bias, fc2_weight, _, _, _, save_hidden = inputs
    _, x_hat, rstd, hidden = output
    # fc1's bias is needed to find the hidden layer again.
    saved = (None, hidden) if save_hidden else (fc1_bias, None)
    ctx.save_for_backward(fc1_weight, fc2_weight, x_hat, rstd, *saved)


def _gradients(ctx: Any, output_mask: list[bool], dout: Tensor) -> tuple[Tensor, ...]:
    fc1_weight, fc2_weight, x_hat, rstd, fc1_bias, hidden = ctx.saved_tensors
    return _backward(dout, fc1_weight, fc1_bias, fc2_weight, x_hat, rstd, hidden, output_mask)


_forward = Operator(
    "mlp(Tensor x, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, float eps, bool save,"
    " bool save_hidden) -> (Tensor out, Tensor x_hat, Tensor rstd, Tensor hidden)",
    launcher="mlp.kernels:forward",
    fake=_forward_fake,
    flops=_forward_flops,
)
_backward = Operator(
    "mlp_backward(Tensor dout, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor x_hat, Tensor rstd,"
    " Tensor? hidden, bool[5] output_mask)"
    " -> (Tensor dx, Tensor dfc1_weight, Tensor dfc1_bias, Tensor dfc2_weight, Tensor dfc2_bias)",
    launcher="mlp.kernels:backward",
    fake=_backward_fake,
    flops=_backward_flops,
)
_forward.differentiable(_save, _gradients, inputs=5)
_backward.not_differentiable("mlp: the kernels have no second derivative; impl='reference' has one")
