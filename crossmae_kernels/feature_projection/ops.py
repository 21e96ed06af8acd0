"""The batched projection for PyTorch's autograd.

All blocks are projected by one product, and each result is a view of what it yields. Autograd would stack the blocks'
gradients before it multiplies them, a copy of all of them; here each is multiplied from where it lies. An operator may
not return views of one tensor, hence an ``autograd.Function`` around the forward pass and an operator in the backward
pass.
"""

from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.autocast import without_autocast
from crossmae_kernels.runtime.flops import Shape, flop_formula, linear_flops

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "project_backward(Tensor x, Tensor weight, Tensor[] gradients, bool[3] wanted)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)"
)


def project(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """``x[l] weight[l]^T + bias[l]``, n times ``(B, K, O)``, of ``(n, B, K, I)``, ``(n, O, I)`` and ``(n, O)``.

    Arguments are of one dtype and taken as checked.
    """
    return _Project.apply(x, weight, bias)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        projected = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, 2), weight.mT)
        return projected.unflatten(1, x.shape[1:3]).unbind()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        found = torch.ops.crossmae_kernels.project_backward(*ctx.saved_tensors, list(gradients), wanted)
        return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))


@without_autocast
def _backward(x: Tensor, weight: Tensor, gradients: list[Tensor], wanted: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias, each written block by block; an empty tensor for each one not wanted."""
    dx, dweight, dbias = _backward_fake(x, weight, gradients, wanted)
    for block, gradient in enumerate(gradients):
        rows = gradient.flatten(0, 1)
        if wanted[0]:
            torch.mm(rows, weight[block], out=dx[block].flatten(0, 1))
        if wanted[1]:
            torch.mm(rows.mT, x[block].flatten(0, 1), out=dweight[block])
        if wanted[2]:
            torch.sum(rows, 0, out=dbias[block])
    return dx, dweight, dbias


def _backward_fake(x: Tensor, weight: Tensor, gradients: list[Tensor], wanted: list[bool]) -> tuple[Tensor, ...]:
    shapes = (x.shape, weight.shape, weight.shape[:2])
    return tuple(x.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True))


@flop_formula(torch.ops.crossmae_kernels.project_backward)
def _backward_flops(x: Shape, weight: Shape, gradients: list[Shape], wanted: list[bool], **_: Any) -> int:
    """The forward pass is PyTorch's own product, which it counts itself."""
    return sum(wanted[:2]) * linear_flops(x, weight)


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("project_feature_maps: its kernels have no second derivative; impl='reference' has one")


for _device in ("CPU", "CUDA"):
    _library.impl("project_backward", _backward, _device)
torch.library.register_fake(f"{NAMESPACE}::project_backward", _backward_fake, lib=_library)
torch.library.register_autograd(f"{NAMESPACE}::project_backward", _no_second_derivative, lib=_library)
