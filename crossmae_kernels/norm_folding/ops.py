"""The fold as PyTorch operators, of one weight and of several: schemas, fake implementations, autograd.

``impl``'s choice was made before: the operators run the kernels. One weight has an operator of its own, since autograd
looks through lists of tensors in Python, at 40 microseconds a call.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.autocast import without_autocast

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "fold_norm(Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, ScalarType dtype)"
    " -> (Tensor folded, Tensor folded_bias)"
)
_library.define(
    "fold_norms(Tensor[] weights, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, ScalarType dtype)"
    " -> (Tensor folded, Tensor folded_bias)"
)
_library.define(
    "fold_norm_backward(Tensor dfolded, Tensor? dfolded_bias, Tensor[] weights, Tensor? norm_weight,"
    " Tensor? norm_bias, bool[3] wanted) -> (Tensor dweight, Tensor dnorm)"
)


def fold_norm(
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Folded weight and bias in ``dtype``, stacked if several; arguments are taken as checked."""
    if isinstance(weight, Tensor):
        folded, folded_bias = torch.ops.crossmae_kernels.fold_norm(weight, bias, norm_weight, norm_bias, dtype)
    else:
        folded, folded_bias = torch.ops.crossmae_kernels.fold_norms(list(weight), bias, norm_weight, norm_bias, dtype)
    return folded, None if bias is None and norm_bias is None else folded_bias


def _fold_norm(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Folded weight and bias; an empty tensor for a bias that is not there."""
    folded, folded_bias = _fold_norms([weight], bias, norm_weight, norm_bias, dtype)
    return folded[0], folded_bias.flatten()


def _fold_norms(
    weights: Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The same of several, stacked."""
    from crossmae_kernels.norm_folding import launch

    folded, folded_bias = launch.fold_norm(weights, bias, norm_weight, norm_bias, dtype)
    return folded, folded.new_empty(0) if folded_bias is None else folded_bias


def _fold_norm_fake(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    biased = bias is not None or norm_bias is not None
    return (
        weight.new_empty(weight.shape, dtype=dtype),
        weight.new_empty(weight.shape[:-1] if biased else (0,), dtype=dtype),
    )


def _fold_norms_fake(
    weights: Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return _fold_norm_fake(weights[0].expand(len(weights), -1, -1), bias, norm_weight, norm_bias, dtype)


@without_autocast
def _fold_norm_backward(
    dfolded: Tensor,
    dfolded_bias: Tensor | None,
    weights: Sequence[Tensor],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of the weights, empty where not wanted, and of the norms' parameters, stacked, in float32."""
    from crossmae_kernels.norm_folding import launch

    dweight, dnorm = launch.fold_norm_backward(dfolded, dfolded_bias, weights, norm_weight, norm_bias, wanted)
    return weights[0].new_empty(0) if dweight is None else dweight, dnorm


def _fold_norm_backward_fake(
    dfolded: Tensor,
    dfolded_bias: Tensor | None,
    weights: Sequence[Tensor],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    return (
        weights[0].new_empty(dfolded.shape if wanted[0] else (0,)),
        dfolded.new_empty((sum(wanted[1:]), *dfolded.shape[:-2], dfolded.shape[-1]), dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weights, bias, norm_weight, norm_bias, _ = inputs
    weights = [weights] if isinstance(weights, Tensor) else weights
    ctx.bias_dtype = None if bias is None else bias.dtype
    if not any(t is not None and t.requires_grad for t in (norm_weight, *weights)):
        # Or a bias that is trained alone would ask whoever multiplies with the weight for its gradient.
        ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(norm_weight, norm_bias, *weights)


def _fold_norm_autograd(ctx: Any, dfolded: Tensor, dfolded_bias: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(ctx, ctx.needs_input_grad[0], dfolded, dfolded_bias), None)


def _fold_norms_autograd(ctx: Any, dfolded: Tensor, dfolded_bias: Tensor) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[0]
    dweight, *others = _gradients(ctx, any(wanted), dfolded, dfolded_bias)
    # Parts of one tensor, which lie as the parameters do.
    each = wanted if dweight is None else dweight.unbind()
    return [gradient if want else None for gradient, want in zip(each, wanted, strict=True)], *others, None


def _gradients(ctx: Any, wants_weight: bool, dfolded: Tensor, dfolded_bias: Tensor) -> tuple[Tensor | None, ...]:
    """Those of weights, together, of bias, ``norm_weight`` and ``norm_bias``; None where not wanted."""
    wants_bias, *wants_norm = ctx.needs_input_grad[1:4]
    norm_weight, norm_bias, *weights = ctx.saved_tensors
    dweight: Tensor | None = None
    dnorm: list[Tensor | None] = [None, None]
    if wants_weight or any(wants_norm):
        shifted = None if norm_bias is None else dfolded_bias
        dweight, sums = torch.ops.crossmae_kernels.fold_norm_backward(
            dfolded, shifted, weights, norm_weight, norm_bias, [wants_weight, *wants_norm]
        )
        slots = iter(sums)
        dnorm = [
            next(slots).to(t.dtype) if want else None
            for want, t in zip(wants_norm, (norm_weight, norm_bias), strict=True)
        ]
    dbias = dfolded_bias.to(ctx.bias_dtype) if wants_bias else None
    return dweight if wants_weight else None, dbias, *dnorm


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("the kernels of fold_norm have no second derivative; impl='reference' has one")


for _device in ("CPU", "CUDA"):
    _library.impl("fold_norm", _fold_norm, _device)
    _library.impl("fold_norms", _fold_norms, _device)
    _library.impl("fold_norm_backward", _fold_norm_backward, _device)
for _name, _fake, _autograd in (
    ("fold_norm", _fold_norm_fake, _fold_norm_autograd),
    ("fold_norms", _fold_norms_fake, _fold_norms_autograd),
):
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _autograd, setup_context=_setup, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::fold_norm_backward", _fold_norm_backward_fake, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::fold_norm_backward", _no_second_derivative, lib=_library)
