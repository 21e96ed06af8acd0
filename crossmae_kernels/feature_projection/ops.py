"""Projections of all blocks for PyTorch's autograd.

Without biases, one batched product projects all blocks, and each result is a view of its output. With biases there is
one product per block, which adds them as it writes: a batched one (``torch.baddbmm``) first writes all results with
biases and then reads them again. Autograd would stack the blocks' gradients before multiplying them, which copies all
of them; here each is used in place. As an operator may not return views of one tensor, the forward pass is an
``autograd.Function`` and the backward pass an operator.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossmae_kernels.runtime.flops import Shape, linear_flops
from crossmae_kernels.runtime.operators import Operator


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """``x[l] weight[l]^T + bias[l]``, n times ``(B, K, O)``, of ``(n, B, K, I)``, ``(n, O, I)`` and ``(n, O)`` or None.

    Arguments have one dtype and are assumed to be checked.
    """
    return _Project.apply(x, weight, bias)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        if bias is not None:
            return tuple(map(F.linear, x.unbind(), weight.unbind(), bias.unbind()))
        return torch.bmm(x.flatten(1, 2), weight.mT).unflatten(1, x.shape[1:3]).unbind()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        output_mask = ctx.needs_input_grad
        found = _backward(*ctx.saved_tensors, list(gradients), output_mask)
        return tuple(gradient if asked else None for gradient, asked in zip(found, output_mask, strict=True))


def _backward_fake(
    x: Tensor, weight: Tensor, gradients: list[Tensor], output_mask: list[bool]
) -> tuple[Tensor | None, ...]:
    shapes = (x.shape, weight.shape, weight.shape[:2])
    return tuple(x.new_empty(shape) if asked else None for shape, asked in zip(shapes, output_mask, strict=True))


def _backward_flops(x: Shape, weight: Shape, gradients: list[Shape], output_mask: list[bool], **_: Any) -> int:
    """Backward FLOPs; the forward pass is PyTorch's own product, which PyTorch counts."""
    return sum(output_mask[:2]) * linear_flops(x, weight)


_backward = Operator(
    "project_backward(Tensor x, Tensor weight, Tensor[] gradients, bool[3] output_mask)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    launcher="feature_projection.kernels:backward",
    fake=_backward_fake,
    flops=_backward_flops,
)
_backward.not_differentiable("project_feature_maps: its kernels have no second derivative; impl='reference' has one")
