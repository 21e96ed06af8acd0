"""The projections' operators: schemas, fakes, FLOPs, what is saved for the backward pass.

They take the original parameters, fold the norm into them and cast to the compute dtype; separate operators for the
fold and the casts would add calls and autograd nodes.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.flops import Shape, linear_flops
from crossmae_kernels.runtime.operators import Operator, made, need_gradient, unstacked


def norm_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    gelu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """See ``crossmae_kernels.norm_linear``, computed in ``dtype``; arguments are assumed to be checked."""
    save = need_gradient(x, weight, bias, norm_weight, norm_bias)
    return _norm_linear(x, weight, bias, norm_weight, norm_bias, eps, gelu, dtype, save)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> Tensor:
    """See ``crossmae_kernels.linear_residual``, computed in the dtype of ``x``; arguments are assumed to be checked."""
    return _linear_residual(x, weight, bias, residual, residual_ids)


def _forward_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return linear_flops(x, weight)


def _norm_linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    gelu: bool,
    dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor | None, ...]:
    rows, (outer, inner) = x.numel() // x.shape[-1], weight.shape
    is_another = norm_weight is not None or norm_bias is not None or weight.dtype != dtype
    return (
        x.new_empty(*x.shape[:-1], outer, dtype=dtype),
        x.new_empty(rows, inner, dtype=dtype) if save else None,
        x.new_empty(rows, dtype=torch.float32) if save else None,
        x.new_empty(rows, outer, dtype=dtype) if save and gelu else None,
        x.new_empty(outer, inner, dtype=dtype) if save and is_another else None,
    )


def _norm_linear_backward_fake(
    dout: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    folded: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    x_dtype: torch.dtype,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    outer, inner = weight.shape
    return (
        weight.new_empty(*dout.shape[:-1], inner, dtype=x_dtype) if output_mask[0] else None,
        weight.new_empty(weight.shape) if output_mask[1] else None,
        weight.new_empty(outer) if output_mask[2] else None,
        weight.new_empty(sum(output_mask[3:]), inner, dtype=torch.float32) if any(output_mask[3:]) else None,
    )


def _norm_linear_backward_flops(
    dout: Shape,
    weight: Shape,
    norm_weight: Shape | None,
    norm_bias: Shape | None,
    folded: Shape,
    x_hat: Shape,
    rstd: Shape,
    hidden: Shape | None,
    x_dtype: torch.dtype,
    output_mask: list[bool],
    **_: Any,
) -> int:
    # The weight and the norm's scale share a product.
    return (output_mask[0] + (output_mask[1] or output_mask[3])) * linear_flops(x_hat, weight)


def _norm_linear_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, norm_weight, norm_bias, _, gelu, *_ = inputs
    _, x_hat, rstd, hidden, folded = output
    ctx.x_dtype = x.dtype
    folded = folded if made(folded) else weight
    ctx.save_for_backward(weight, norm_weight, norm_bias, folded, x_hat, rstd, hidden if gelu else None)


def _norm_linear_gradients(ctx: Any, output_mask: list[bool], dout: Tensor) -> tuple[Tensor | None, ...]:
    *found, dnorm = _norm_linear_backward(dout, *ctx.saved_tensors, ctx.x_dtype, output_mask)
    return *found, *unstacked(dnorm, output_mask[3:])


def _linear_residual_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    out = residual.new_empty(*x.shape[:-1], weight.shape[0])
    return out, None if weight.dtype == x.dtype else x.new_empty(weight.shape)


def _linear_residual_backward_fake(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    residual_ids: Tensor | None,
    table_rows: int,
    dtype: torch.dtype,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    return (
        x.new_empty(x.shape) if output_mask[0] else None,
        weight.new_empty(weight.shape, dtype=dtype) if output_mask[1] else None,
        weight.new_empty(weight.shape[0], dtype=dtype) if output_mask[2] else None,
        dout.new_empty(table_rows, dout.shape[-1]) if output_mask[3] else None,
    )


def _linear_residual_backward_flops(
    dout: Shape,
    x: Shape,
    weight: Shape,
    residual_ids: Shape | None,
    table_rows: int,
    dtype: torch.dtype,
    output_mask: list[bool],
    **_: Any,
) -> int:
    return sum(output_mask[:2]) * linear_flops(x, weight)


def _linear_residual_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, residual, residual_ids = inputs
    ctx.table_rows, ctx.dtype = residual.shape[0], weight.dtype
    ctx.save_for_backward(x, output[1] if made(output[1]) else weight, residual_ids)


def _linear_residual_gradients(ctx: Any, output_mask: list[bool], dout: Tensor) -> tuple[Tensor, ...]:
    x, weight, residual_ids = ctx.saved_tensors
    if residual_ids is not None:
        return _linear_residual_backward(dout, x, weight, residual_ids, ctx.table_rows, ctx.dtype, output_mask)
    # A dense residual's gradient is the upstream one; a table's rows are summed by id.
    found: tuple[Any, ...] = (None,) * 3
    if any(output_mask[:3]):
        mask = [*output_mask[:3], False]
        *found, _ = _linear_residual_backward(dout, x, weight, None, ctx.table_rows, ctx.dtype, mask)
    return (*found, dout)


_norm_linear = Operator(
    "norm_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, float eps, bool gelu,"
    " ScalarType dtype, bool save) -> (Tensor out, Tensor x_hat, Tensor rstd, Tensor hidden, Tensor folded)",
    launcher="projection.kernels:norm_linear",
    fake=_norm_linear_fake,
    flops=_forward_flops,
)
_norm_linear_backward = Operator(
    "norm_linear_backward(Tensor dout, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, Tensor folded,"
    " Tensor x_hat, Tensor rstd, Tensor? hidden, ScalarType x_dtype, bool[5] output_mask)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dnorm)",
    launcher="projection.kernels:norm_linear_backward",
    fake=_norm_linear_backward_fake,
    flops=_norm_linear_backward_flops,
)
_linear_residual = Operator(
    "linear_residual(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? residual_ids)"
    " -> (Tensor out, Tensor cast_weight)",
    launcher="projection.kernels:linear_residual",
    fake=_linear_residual_fake,
    flops=_forward_flops,
)
_linear_residual_backward = Operator(
    "linear_residual_backward(Tensor dout, Tensor x, Tensor weight, Tensor? residual_ids, SymInt table_rows,"
    " ScalarType dtype, bool[4] output_mask) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dtable)",
    launcher="projection.kernels:linear_residual_backward",
    fake=_linear_residual_backward_fake,
    flops=_linear_residual_backward_flops,
)
_norm_linear.differentiable(_norm_linear_save, _norm_linear_gradients, inputs=5)
_linear_residual.differentiable(_linear_residual_save, _linear_residual_gradients, inputs=4)
for _op in (_norm_linear_backward, _linear_residual_backward):
    _op.not_differentiable("the kernels of the projections have no second derivative; impl='reference' has one")
