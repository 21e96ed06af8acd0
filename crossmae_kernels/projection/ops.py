"""The projections' operators: schemas, fakes, FLOPs, what is saved for the backward pass.

Weights and biases come folded and in the dtype to compute in; the residual may be float32 beside them.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.flops import Shape, linear_flops
from crossmae_kernels.runtime.operators import Operator, need_gradient


def norm_linear(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, gelu: bool) -> Tensor:
    """``activation(x_hat weight^T + bias)`` in the dtype of the weight; arguments are taken as checked."""
    return _norm_linear(x, weight, bias, eps, gelu, need_gradient(x, weight, bias))[0]


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> Tensor:
    """``residual + x weight^T + bias`` in the residual's dtype; arguments are taken as checked."""
    return _linear_residual(x, weight, bias, residual, residual_ids)


def _forward_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return linear_flops(x, weight)


def _norm_linear_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, gelu: bool, save: bool
) -> tuple[Tensor | None, ...]:
    rows, (outer, inner) = x.numel() // x.shape[-1], weight.shape
    return (
        weight.new_empty(*x.shape[:-1], outer),
        weight.new_empty(rows, inner) if save else None,
        weight.new_empty(rows, dtype=torch.float32) if save else None,
        weight.new_empty(rows, outer) if save and gelu else None,
    )


def _norm_linear_backward_fake(
    dout: Tensor,
    weight: Tensor,
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
    )


def _norm_linear_backward_flops(
    dout: Shape,
    weight: Shape,
    x_hat: Shape,
    rstd: Shape,
    hidden: Shape | None,
    x_dtype: torch.dtype,
    output_mask: list[bool],
    **_: Any,
) -> int:
    return sum(output_mask[:2]) * linear_flops(x_hat, weight)


def _norm_linear_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _, gelu, _ = inputs
    _, x_hat, rstd, hidden = output
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(weight, x_hat, rstd, hidden if gelu else None)


def _norm_linear_gradients(ctx: Any, output_mask: list[bool], dout: Tensor) -> tuple[Tensor, ...]:
    return _norm_linear_backward(dout, *ctx.saved_tensors, ctx.x_dtype, output_mask)


def _linear_residual_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> Tensor:
    return residual.new_empty(*x.shape[:-1], weight.shape[0])


def _linear_residual_backward_fake(
    dout: Tensor, x: Tensor, weight: Tensor, residual_ids: Tensor | None, table_rows: int, output_mask: list[bool]
) -> tuple[Tensor | None, ...]:
    return (
        x.new_empty(x.shape) if output_mask[0] else None,
        weight.new_empty(weight.shape) if output_mask[1] else None,
        weight.new_empty(weight.shape[0]) if output_mask[2] else None,
        dout.new_empty(table_rows, dout.shape[-1]) if output_mask[3] else None,
    )


def _linear_residual_backward_flops(
    dout: Shape,
    x: Shape,
    weight: Shape,
    residual_ids: Shape | None,
    table_rows: int,
    output_mask: list[bool],
    **_: Any,
) -> int:
    return sum(output_mask[:2]) * linear_flops(x, weight)


def _linear_residual_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, residual, residual_ids = inputs
    ctx.table_rows = residual.shape[0]
    ctx.save_for_backward(x, weight, residual_ids)


def _linear_residual_gradients(ctx: Any, output_mask: list[bool], dout: Tensor) -> tuple[Tensor, ...]:
    x, weight, residual_ids = ctx.saved_tensors
    if residual_ids is not None:
        return _linear_residual_backward(dout, x, weight, residual_ids, ctx.table_rows, output_mask)
    # A dense residual has the upstream gradient itself; rows of a table are summed by id.
    found: tuple[Any, ...] = (None,) * 3
    if any(output_mask[:3]):
        *found, _ = _linear_residual_backward(dout, x, weight, None, ctx.table_rows, [*output_mask[:3], False])
    return (*found, dout)


_norm_linear = Operator(
    "norm_linear(Tensor x, Tensor weight, Tensor? bias, float eps, bool gelu, bool save)"
    " -> (Tensor out, Tensor x_hat, Tensor rstd, Tensor hidden)",
    launcher="projection.kernels:norm_linear",
    fake=_norm_linear_fake,
    flops=_forward_flops,
)
_norm_linear_backward = Operator(
    "norm_linear_backward(Tensor dout, Tensor weight, Tensor x_hat, Tensor rstd, Tensor? hidden, ScalarType x_dtype,"
    " bool[3] output_mask) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    launcher="projection.kernels:norm_linear_backward",
    fake=_norm_linear_backward_fake,
    flops=_norm_linear_backward_flops,
)
_linear_residual = Operator(
    "linear_residual(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? residual_ids) -> Tensor",
    launcher="projection.kernels:linear_residual",
    fake=_linear_residual_fake,
    flops=_forward_flops,
)
_linear_residual_backward = Operator(
    "linear_residual_backward(Tensor dout, Tensor x, Tensor weight, Tensor? residual_ids, SymInt table_rows,"
    " bool[4] output_mask) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dtable)",
    launcher="projection.kernels:linear_residual_backward",
    fake=_linear_residual_backward_fake,
    flops=_linear_residual_backward_flops,
)
_norm_linear.differentiable(_norm_linear_save, _norm_linear_gradients, inputs=3)
_linear_residual.differentiable(_linear_residual_save, _linear_residual_gradients, inputs=4)
for _op in (_norm_linear_backward, _linear_residual_backward):
    _op.not_differentiable("the kernels of the projections have no second derivative; impl='reference' has one")
