"""The projections as PyTorch operators: schemas, fake implementations, autograd, FLOPs.

``impl``'s choice was made before: these operators run the kernels. Weights and biases come folded and in the dtype
to compute in; the residual stream may be float32 beside them.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.autocast import without_autocast
from crossmae_kernels.runtime.flops import Shape, flop_formula, linear_flops

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "norm_linear(Tensor x, Tensor weight, Tensor? bias, float eps, bool gelu, bool keep)"
    " -> (Tensor out, Tensor x_hat, Tensor rstd, Tensor hidden)"
)
_library.define(
    "norm_linear_backward(Tensor dout, Tensor weight, Tensor x_hat, Tensor rstd, Tensor? hidden, ScalarType x_dtype,"
    " bool[3] wanted) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "linear_residual(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? residual_ids) -> Tensor"
)
_library.define(
    "linear_residual_backward(Tensor dout, Tensor x, Tensor weight, Tensor? residual_ids, SymInt table_rows,"
    " bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)"
)


def norm_linear(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, gelu: bool) -> Tensor:
    """``activation(x_hat weight^T + bias)`` in the dtype of the weight; arguments are taken as checked."""
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    return torch.ops.crossmae_kernels.norm_linear(x, weight, bias, eps, gelu, keep)[0]


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> Tensor:
    """``residual + x weight^T + bias`` in the residual's dtype; arguments are taken as checked."""
    return torch.ops.crossmae_kernels.linear_residual(x, weight, bias, residual, residual_ids)


@without_autocast
def _norm_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, gelu: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from crossmae_kernels.projection import launch

    return launch.norm_linear(x, weight, bias, eps, gelu, keep)


def _norm_linear_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, gelu: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, (outer, inner) = x.numel() // x.shape[-1], weight.shape
    return (
        weight.new_empty(*x.shape[:-1], outer),
        weight.new_empty((rows, inner) if keep else (0,)),
        weight.new_empty(rows if keep else 0, dtype=torch.float32),
        weight.new_empty((rows, outer) if keep and gelu else (0,)),
    )


@without_autocast
def _norm_linear_backward(
    dout: Tensor,
    weight: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    x_dtype: torch.dtype,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias; an empty tensor for each one not wanted."""
    from crossmae_kernels.projection import launch

    gradients = launch.norm_linear_backward(dout, weight, x_hat, rstd, hidden, x_dtype, wanted)
    return tuple(weight.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _norm_linear_backward_fake(
    dout: Tensor,
    weight: Tensor,
    x_hat: Tensor,
    rstd: Tensor,
    hidden: Tensor | None,
    x_dtype: torch.dtype,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    outer, inner = weight.shape
    return (
        weight.new_empty((*dout.shape[:-1], inner), dtype=x_dtype) if wanted[0] else weight.new_empty(0),
        weight.new_empty((outer, inner) if wanted[1] else (0,)),
        weight.new_empty(outer if wanted[2] else 0),
    )


@flop_formula(torch.ops.crossmae_kernels.norm_linear_backward)
def _norm_linear_backward_flops(
    dout: Shape,
    weight: Shape,
    x_hat: Shape,
    rstd: Shape,
    hidden: Shape | None,
    x_dtype: torch.dtype,
    wanted: list[bool],
    **_: Any,
) -> int:
    return sum(wanted[:2]) * linear_flops(x_hat, weight)


def _norm_linear_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _, ctx.gelu, _ = inputs
    _, x_hat, rstd, hidden = output
    ctx.mark_non_differentiable(x_hat, rstd, hidden)
    ctx.set_materialize_grads(False)
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(weight, x_hat, rstd, *([hidden] if ctx.gelu else []))


def _norm_linear_autograd(ctx: Any, dout: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    if dout is None or not any(wanted):
        return (None,) * 6
    weight, x_hat, rstd, *hidden = ctx.saved_tensors
    gradients = torch.ops.crossmae_kernels.norm_linear_backward(
        dout, weight, x_hat, rstd, hidden[0] if ctx.gelu else None, ctx.x_dtype, wanted
    )
    return (*(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)), None, None, None)


@without_autocast
def _linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> Tensor:
    from crossmae_kernels.projection import launch

    return launch.linear_residual(x, weight, bias, residual, residual_ids)


def _linear_residual_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, residual_ids: Tensor | None
) -> Tensor:
    return residual.new_empty(*x.shape[:-1], weight.shape[0])


@without_autocast
def _linear_residual_backward(
    dout: Tensor, x: Tensor, weight: Tensor, residual_ids: Tensor | None, table_rows: int, wanted: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias and the table; an empty tensor for each one not wanted."""
    from crossmae_kernels.projection import launch

    gradients = launch.linear_residual_backward(dout, x, weight, residual_ids, table_rows, wanted)
    return tuple(weight.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _linear_residual_backward_fake(
    dout: Tensor, x: Tensor, weight: Tensor, residual_ids: Tensor | None, table_rows: int, wanted: list[bool]
) -> tuple[Tensor, ...]:
    return (
        x.new_empty(x.shape if wanted[0] else (0,)),
        weight.new_empty(weight.shape if wanted[1] else (0,)),
        weight.new_empty(weight.shape[0] if wanted[2] else 0),
        dout.new_empty(table_rows, dout.shape[-1]) if wanted[3] else weight.new_empty(0),
    )


@flop_formula(torch.ops.crossmae_kernels.linear_residual_backward)
def _linear_residual_backward_flops(
    dout: Shape,
    x: Shape,
    weight: Shape,
    residual_ids: Shape | None,
    table_rows: int,
    wanted: list[bool],
    **_: Any,
) -> int:
    return sum(wanted[:2]) * linear_flops(x, weight)


def _linear_residual_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, residual, residual_ids = inputs
    ctx.table_rows = residual.shape[0]
    ctx.save_for_backward(x, weight, residual_ids)


def _linear_residual_autograd(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, residual_ids = ctx.saved_tensors
    *wanted, wants_residual = ctx.needs_input_grad[:4]
    # A dense residual has the upstream gradient itself; rows of a table are summed by id.
    wanted.append(wants_residual and residual_ids is not None)
    gradients: list[Tensor | None] = [None] * 4
    if any(wanted):
        computed = torch.ops.crossmae_kernels.linear_residual_backward(
            dout, x, weight, residual_ids, ctx.table_rows, wanted
        )
        gradients = [gradient if want else None for gradient, want in zip(computed, wanted, strict=True)]
    if wants_residual and residual_ids is None:
        gradients[3] = dout
    return (*gradients, None)


@flop_formula(torch.ops.crossmae_kernels.norm_linear)
@flop_formula(torch.ops.crossmae_kernels.linear_residual)
def _forward_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return linear_flops(x, weight)


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("the kernels of the projections have no second derivative; impl='reference' has one")


for _name, _forward, _forward_fake, _setup, _autograd, _backward, _backward_fake in (
    (
        "norm_linear", _norm_linear, _norm_linear_fake, _norm_linear_setup, _norm_linear_autograd,
        _norm_linear_backward, _norm_linear_backward_fake,
    ),
    (
        "linear_residual", _linear_residual, _linear_residual_fake, _linear_residual_setup, _linear_residual_autograd,
        _linear_residual_backward, _linear_residual_backward_fake,
    ),
):  # fmt: skip
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _forward, _device)
        _library.impl(f"{_name}_backward", _backward, _device)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _forward_fake, lib=_library)
    torch.library.register_fake(f"{NAMESPACE}::{_name}_backward", _backward_fake, lib=_library)
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _autograd, setup_context=_setup, lib=_library)
    torch.library.register_autograd(f"{NAMESPACE}::{_name}_backward", _no_second_derivative, lib=_library)
