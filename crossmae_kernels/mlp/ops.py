"""The MLP's operators: schemas, fakes, FLOPs, what is saved for the backward pass.

They take the original parameters, fold the norm into fc1 and cast to the compute dtype; ``x`` may be float32. A
separate operator for the fold would add a call and an autograd node.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.flops import Shape, linear_flops
from crossmae_kernels.runtime.operators import Operator, made, need_gradient, unstacked


def mlp(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    save_hidden: bool,
) -> Tensor:
    """See ``crossmae_kernels.mlp``, computed in ``dtype``; arguments are assumed to be checked."""
    save = need_gradient(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return _forward(
        x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, dtype, save, save and save_hidden
    )


def _forward_fake(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    save: bool,
    save_hidden: bool,
) -> tuple[Tensor | None, ...]:
    hidden, width = fc1_weight.shape
    rows = x.numel() // width
    casts = fc1_weight.dtype != dtype
    folds = norm_weight is not None or norm_bias is not None
    biased = norm_bias is not None or (fc1_bias is not None and (folds or fc1_bias.dtype != dtype))
    return (
        x.new_empty(x.shape),
        x.new_empty(rows, width, dtype=dtype) if save else None,
        x.new_empty(rows, dtype=torch.float32) if save else None,
        x.new_empty(rows, hidden, dtype=dtype) if save_hidden else None,
        x.new_empty(hidden, width, dtype=dtype) if save and (folds or casts) else None,
        x.new_empty(hidden, dtype=dtype) if save and biased else None,
        x.new_empty(width, hidden, dtype=dtype) if save and fc2_weight.dtype != dtype else None,
    )


def _forward_flops(
    x: Shape, norm_weight: Shape | None, norm_bias: Shape | None, fc1_weight: Shape, *_: Any, **__: Any
) -> int:
    return 2 * linear_flops(x, fc1_weight)


def _backward_fake(
    dout: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    folded_weight: Tensor,
    folded_bias: Tensor | None,
    fc2_weight: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    hidden_width, width = fc1_weight.shape
    wants_x, *wants_norm = output_mask[:3]
    shapes = (hidden_width, width), (hidden_width,), (width, hidden_width)
    of_weights = zip(shapes, output_mask[3:6], strict=True)
    return (
        dout.new_empty(dout.shape) if wants_x else None,
        dout.new_empty(sum(wants_norm), width, dtype=torch.float32) if any(wants_norm) else None,
        *(fc1_weight.new_empty(shape) if asked else None for shape, asked in of_weights),
        dout.new_empty(width, dtype=torch.float32) if output_mask[6] else None,
    )


def _backward_flops(
    dout: Shape,
    norm_weight: Shape | None,
    norm_bias: Shape | None,
    fc1_weight: Shape,
    folded_weight: Shape,
    folded_bias: Shape | None,
    fc2_weight: Shape,
    x_hat: Shape,
    rstd: Shape,
    hidden: Shape | None,
    output_mask: list[bool],
    **_: Any,
) -> int:
    # All gradients except fc2's need the hidden layer's; fc1's weight and the norm's scale share a product.
    of_hidden, of_x, of_fc2 = any(output_mask[:5]), output_mask[0], output_mask[5]
    of_fc1 = output_mask[1] or output_mask[3]
    return (of_hidden + of_x + of_fc1 + of_fc2) * linear_flops(x_hat, fc1_weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, *_, save_hidden = inputs
    _, x_hat, rstd, hidden, folded_weight, folded_bias, cast = output
    bias = folded_bias if made(folded_bias) else fc1_bias
    ctx.save_for_backward(
        norm_weight,
        norm_bias,
        fc1_weight,
        folded_weight if made(folded_weight) else fc1_weight,
        None if save_hidden else bias,  # needed to recompute the hidden layer
        cast if made(cast) else fc2_weight,
        x_hat,
        rstd,
        hidden if save_hidden else None,
    )


def _gradients(ctx: Any, output_mask: list[bool], dout: Tensor) -> tuple[Tensor | None, ...]:
    dx, dnorm, *others = _backward(dout, *ctx.saved_tensors, output_mask)
    return dx, *unstacked(dnorm, output_mask[1:3]), *others


_forward = Operator(
    "mlp(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight,"
    " Tensor? fc2_bias, float eps, ScalarType dtype, bool save, bool save_hidden) -> (Tensor out, Tensor x_hat,"
    " Tensor rstd, Tensor hidden, Tensor folded_weight, Tensor folded_bias, Tensor cast_fc2_weight)",
    launcher="mlp.kernels:forward",
    fake=_forward_fake,
    flops=_forward_flops,
)
_backward = Operator(
    "mlp_backward(Tensor dout, Tensor? norm_weight, Tensor? norm_bias, Tensor fc1_weight, Tensor folded_weight,"
    " Tensor? folded_bias, Tensor fc2_weight, Tensor x_hat, Tensor rstd, Tensor? hidden, bool[7] output_mask)"
    " -> (Tensor dx, Tensor dnorm, Tensor dfc1_weight, Tensor dfc1_bias,"
    " Tensor dfc2_weight, Tensor dfc2_bias)",
    launcher="mlp.kernels:backward",
    fake=_backward_fake,
    flops=_backward_flops,
)
_forward.differentiable(_save, _gradients, inputs=7)
_backward.not_differentiable("mlp: the kernels have no second derivative; impl='reference' has one")
