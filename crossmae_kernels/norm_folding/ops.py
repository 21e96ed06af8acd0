"""The fold's operators, for one weight and for several: schemas, fakes, what is saved for the backward pass.

One weight has its own operator, since autograd handles lists of tensors in Python, at 40 microseconds per call.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.autocast import cast
from crossmae_kernels.runtime.operators import Operator, unstacked


def fold_norm(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Folded weight ``(O, I)`` and bias ``(O,)`` in ``dtype``; arguments are assumed to be checked."""
    if norm_weight is None and norm_bias is None:
        return weight.to(dtype), cast(bias, dtype)
    folded, folded_bias = _forward(weight, bias, norm_weight, norm_bias, dtype)
    return folded, None if bias is None and norm_bias is None else folded_bias


def fold_norms(
    weights: Sequence[Tensor],
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The same for several, stacked: ``(n, O, I)`` and ``(n, O)``, in one launch, even if only for the cast."""
    folded, folded_bias = _forward_of_several(list(weights), bias, norm_weight, norm_bias, dtype)
    return folded, None if bias is None and norm_bias is None else folded_bias


def _forward_fake(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    biased = bias is not None or norm_bias is not None
    return (
        weight.new_empty(weight.shape, dtype=dtype),
        weight.new_empty(weight.shape[:-1], dtype=dtype) if biased else None,
    )


def _forward_of_several_fake(weights: Sequence[Tensor], *others: Any) -> tuple[Tensor, Tensor | None]:
    return _forward_fake(weights[0].expand(len(weights), -1, -1), *others)


def _backward_fake(
    dfolded: Tensor,
    dfolded_bias: Tensor | None,
    weights: Sequence[Tensor],
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    wanted = sum(output_mask[1:])
    return (
        weights[0].new_empty(dfolded.shape) if output_mask[0] else None,
        dfolded.new_empty((wanted, *dfolded.shape[:-2], dfolded.shape[-1]), dtype=torch.float32) if wanted else None,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weights, bias, norm_weight, norm_bias, _ = inputs
    weights = [weights] if isinstance(weights, Tensor) else weights
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.set_materialize_grads(True)
    if not any(t is not None and t.requires_grad for t in (norm_weight, *weights)):
        # Otherwise, training only the bias would request the gradient of the weight from its product.
        ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(norm_weight, norm_bias, *weights)


def _gradients(ctx: Any, output_mask: list[bool], dfolded: Tensor, dfolded_bias: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of the weights (together), bias, ``norm_weight`` and ``norm_bias``."""
    wants_weight, wants_bias, *wants_norm = output_mask
    norm_weight, norm_bias, *weights = ctx.saved_tensors
    dweight = dnorm = None
    if wants_weight or any(wants_norm):
        shifted = None if norm_bias is None else dfolded_bias
        mask = [wants_weight, *wants_norm]
        dweight, dnorm = _backward(dfolded, shifted, weights, norm_weight, norm_bias, mask)
    return dweight, dfolded_bias.to(ctx.bias_dtype) if wants_bias else None, *unstacked(dnorm, wants_norm)


_forward = Operator(
    "fold_norm(Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, ScalarType dtype)"
    " -> (Tensor folded, Tensor folded_bias)",
    launcher="primitives.norm_folding:fold_norm",
    fake=_forward_fake,
    flops=None,
)
_forward_of_several = Operator(
    "fold_norms(Tensor[] weights, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, ScalarType dtype)"
    " -> (Tensor folded, Tensor folded_bias)",
    launcher="primitives.norm_folding:fold_norms",
    fake=_forward_of_several_fake,
    flops=None,
)
_backward = Operator(
    "fold_norm_backward(Tensor dfolded, Tensor? dfolded_bias, Tensor[] weights, Tensor? norm_weight, Tensor? norm_bias,"
    " bool[3] output_mask) -> (Tensor dweight, Tensor dnorm)",
    launcher="primitives.norm_folding:fold_norm_backward",
    fake=_backward_fake,
    flops=None,
)
for _op in (_forward, _forward_of_several):
    _op.differentiable(_save, _gradients, inputs=4, results=2)
_backward.not_differentiable("the kernels of fold_norm have no second derivative; impl='reference' has one")
