"""The fold as a PyTorch operator: schema, fake implementation, autograd.

``impl``'s choice was made before: the operator runs the kernels.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.common.autocast import without_autocast

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "fold_norm(Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, ScalarType dtype)"
    " -> (Tensor folded, Tensor folded_bias)"
)
_library.define(
    "fold_norm_backward(Tensor dfolded, Tensor? dfolded_bias, Tensor weight, Tensor? norm_weight, Tensor? norm_bias,"
    " bool[3] wanted) -> (Tensor dweight, Tensor dnorm)"
)


def fold_norm(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Folded weight and bias in ``dtype``; arguments are taken as checked."""
    folded, folded_bias = torch.ops.crossmae_kernels.fold_norm(weight, bias, norm_weight, norm_bias, dtype)
    return folded, None if bias is None and norm_bias is None else folded_bias


@without_autocast
def _fold_norm(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Folded weight and bias; an empty tensor for a bias that is not there."""
    from crossmae_kernels.common.folding import launch

    folded, folded_bias = launch.fold_norm(weight, bias, norm_weight, norm_bias, dtype)
    return folded, folded.new_empty(0) if folded_bias is None else folded_bias


def _fold_norm_fake(
    weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    biased = bias is not None or norm_bias is not None
    return (
        weight.new_empty(weight.shape, dtype=dtype),
        weight.new_empty(weight.shape[:-1] if biased else (0,), dtype=dtype),
    )


@without_autocast
def _fold_norm_backward(
    dfolded: Tensor,
    dfolded_bias: Tensor | None,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight, empty where not wanted, and of the norm's parameters, stacked, in float32."""
    from crossmae_kernels.common.folding import launch

    dweight, dnorm = launch.fold_norm_backward(dfolded, dfolded_bias, weight, norm_weight, norm_bias, wanted)
    return weight.new_empty(0) if dweight is None else dweight, dnorm


def _fold_norm_backward_fake(
    dfolded: Tensor,
    dfolded_bias: Tensor | None,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    return (
        weight.new_empty(weight.shape if wanted[0] else (0,)),
        weight.new_empty((sum(wanted[1:]), *weight.shape[:-2], weight.shape[-1]), dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weight, bias, norm_weight, norm_bias, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(weight, norm_weight, norm_bias)


def _autograd(ctx: Any, dfolded: Tensor, dfolded_bias: Tensor) -> tuple[Tensor | None, ...]:
    wants_weight, wants_bias, *wants_norm = ctx.needs_input_grad[:4]
    weight, *norm = ctx.saved_tensors
    dweight: Tensor | None = None
    dnorm: list[Tensor | None] = [None, None]
    if wants_weight or any(wants_norm):
        shifted = None if norm[1] is None else dfolded_bias
        dweight, sums = torch.ops.crossmae_kernels.fold_norm_backward(
            dfolded, shifted, weight, *norm, [wants_weight, *wants_norm]
        )
        slots = iter(sums)
        dnorm = [next(slots).to(t.dtype) if want else None for want, t in zip(wants_norm, norm, strict=True)]
    dbias = dfolded_bias.to(ctx.bias_dtype) if wants_bias else None
    return dweight if wants_weight else None, dbias, *dnorm, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("the kernels of fold_norm have no second derivative; impl='reference' has one")


for _device in ("CPU", "CUDA"):
    _library.impl("fold_norm", _fold_norm, _device)
    _library.impl("fold_norm_backward", _fold_norm_backward, _device)
torch.library.register_fake(f"{NAMESPACE}::fold_norm", _fold_norm_fake, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::fold_norm_backward", _fold_norm_backward_fake, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::fold_norm", _autograd, setup_context=_setup, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::fold_norm_backward", _no_second_derivative, lib=_library)
