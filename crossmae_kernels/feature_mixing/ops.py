"""Mixing of feature maps as a PyTorch operator: schema, fake implementation, autograd, FLOPs."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.feature_mixing.config import held
from crossmae_kernels.runtime.autocast import compute_dtype
from crossmae_kernels.runtime.flops import Shape, flop_formula

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "mix_feature_maps(Tensor[] maps, Tensor weight, float eps, bool normalize) -> (Tensor mixes, Tensor means,"
    " Tensor rstds)"
)
_library.define(
    "mix_feature_maps_backward(Tensor dmixes, Tensor[] maps, Tensor weight, Tensor? mixes, Tensor means, Tensor rstds,"
    " bool normalize, bool[2] wanted) -> (Tensor, Tensor)"
)


def mix_feature_maps(maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool) -> Tensor:
    """See ``crossmae_kernels.mix_feature_maps``, without an affine; arguments are taken as checked.

    Maps may be of a higher precision than the weights, which then decide what is multiplied and returned: under
    autocast maps are read as they are and rounded on chip.
    """
    weight = weight.to(compute_dtype(weight))
    mixes, _, _ = torch.ops.crossmae_kernels.mix_feature_maps(list(maps), weight, eps, normalize)
    return mixes


def _forward(maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    from crossmae_kernels.feature_mixing import launch

    return launch.forward(maps, weight, eps, normalize)


def _forward_fake(maps: Sequence[Tensor], weight: Tensor, eps: float, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    mixes = weight.new_empty(weight.shape[0], *maps[0].shape)
    on_chip = held(weight.shape[0], mixes.shape[3], weight.element_size())
    means = mixes.new_empty(mixes.shape[:3] if normalize and on_chip else (0,), dtype=torch.float32)
    return mixes, means, mixes.new_empty(mixes.shape[:3] if normalize else (0,), dtype=torch.float32)


def _backward(
    dmixes: Tensor,
    maps: Sequence[Tensor],
    weight: Tensor,
    mixes: Tensor | None,
    means: Tensor,
    rstds: Tensor,
    normalize: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of all maps in one tensor, and of the weights; an empty tensor for one not wanted."""
    from crossmae_kernels.feature_mixing import launch

    dmaps, dweight = launch.backward(dmixes, maps, weight, mixes, means, rstds, normalize, wanted)
    return (
        maps[0].new_empty(0) if dmaps is None else dmaps,
        weight.new_empty(0) if dweight is None else dweight,
    )


def _backward_fake(
    dmixes: Tensor,
    maps: Sequence[Tensor],
    weight: Tensor,
    mixes: Tensor | None,
    means: Tensor,
    rstds: Tensor,
    normalize: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    return (
        maps[0].new_empty((len(maps), *maps[0].shape) if wanted[0] else (0,)),
        weight.new_empty(weight.shape if wanted[1] else (0,)),
    )


@flop_formula(torch.ops.crossmae_kernels.mix_feature_maps)
def _forward_flops(maps: Sequence[Shape], weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(weight) * prod(maps[0])


@flop_formula(torch.ops.crossmae_kernels.mix_feature_maps_backward)
def _backward_flops(
    dmixes: Shape,
    maps: Sequence[Shape],
    weight: Shape,
    mixes: Shape | None,
    means: Shape,
    rstds: Shape,
    normalize: bool,
    wanted: list[bool],
    **_: Any,
) -> int:
    return sum(wanted) * _forward_flops(maps, weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    maps, weight, _, ctx.normalize = inputs
    mixes, means, rstds = output
    ctx.mark_non_differentiable(means, rstds)
    ctx.set_materialize_grads(False)
    ctx.maps_wanted = [feature_map.requires_grad for feature_map in maps]
    on_chip = held(weight.shape[0], mixes.shape[3], weight.element_size())
    # Where they are needed, whoever multiplies with the mixes keeps them anyway.
    kept = mixes if ctx.normalize and not on_chip else None
    ctx.save_for_backward(weight, kept, means, rstds, *maps)


def _autograd(ctx: Any, dmixes: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    wanted = [any(ctx.maps_wanted), ctx.needs_input_grad[1]]
    none = [None] * len(ctx.maps_wanted)
    if dmixes is None or not any(wanted):
        return none, None, None, None
    weight, mixes, means, rstds, *maps = ctx.saved_tensors
    dmaps, dweight = torch.ops.crossmae_kernels.mix_feature_maps_backward(
        dmixes, maps, weight, mixes, means, rstds, ctx.normalize, wanted
    )
    of_maps = dmaps.unbind() if wanted[0] else none
    return (
        [gradient if want else None for gradient, want in zip(of_maps, ctx.maps_wanted, strict=True)],
        dweight if wanted[1] else None,
        None,
        None,
    )


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("mix_feature_maps: the Triton kernel has no second derivative; impl='reference' has one")


for _device in ("CPU", "CUDA"):
    _library.impl("mix_feature_maps", _forward, _device)
    _library.impl("mix_feature_maps_backward", _backward, _device)
torch.library.register_fake(f"{NAMESPACE}::mix_feature_maps", _forward_fake, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::mix_feature_maps_backward", _backward_fake, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::mix_feature_maps", _autograd, setup_context=_setup_context, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::mix_feature_maps_backward", _no_second_derivative, lib=_library)
