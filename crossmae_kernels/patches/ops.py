"""The patches' operators, gather and loss: schemas, fakes, what is saved for the backward pass.

Nothing is cast under autocast: the public functions choose the dtype of rows, and the loss takes its arguments in any
dtype and computes in float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmae_kernels.runtime.operators import Operator, need_gradient


def gather_patches(
    images: Tensor, ids: Tensor, sides: tuple[int, int], mean: Tensor | None, std: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See ``crossmae_kernels.gather_patches``; arguments are assumed to be checked. Rows are returned in ``dtype``."""
    return _gather(images, ids, mean, std, *sides, dtype)


def patch_loss(
    prediction: Tensor,
    images: Tensor,
    predicted_ids: Tensor,
    sides: tuple[int, int],
    normalize: bool,
    mean: Tensor | None,
    std: Tensor | None,
) -> Tensor:
    """See ``crossmae_kernels.patch_loss``; arguments are assumed to be checked. The loss of each patch, ``(B, Q)``."""
    save = need_gradient(prediction)
    return _loss(prediction, images, predicted_ids, mean, std, *sides, normalize, save)


def _gather_fake(
    images: Tensor, ids: Tensor, mean: Tensor | None, std: Tensor | None, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    return images.new_empty(*ids.shape, images.shape[1] * height * width, dtype=dtype)


def _gather_backward_fake(
    dout: Tensor, ids: Tensor, image_shape: Sequence[int], height: int, width: int, dtype: torch.dtype
) -> Tensor:
    return dout.new_empty(image_shape, dtype=dtype)


def _gather_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, ids, _, _, *ctx.sides, _ = inputs
    ctx.image_shape, ctx.dtype = images.shape, images.dtype
    ctx.save_for_backward(ids)


def _gather_gradients(ctx: Any, output_mask: list[bool], dout: Tensor) -> tuple[Tensor]:
    (ids,) = ctx.saved_tensors
    return (_gather_backward(dout, ids, ctx.image_shape, *ctx.sides, ctx.dtype),)


def _gather_backward_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dout, ids, _, *ctx.sides, _ = inputs
    ctx.dtype = dout.dtype
    ctx.save_for_backward(ids)


def _gather_backward_gradients(ctx: Any, output_mask: list[bool], gradient: Tensor) -> tuple[Tensor]:
    # The gather is linear: its gradient's gradient is a gather again.
    (ids,) = ctx.saved_tensors
    return (_gather(gradient, ids, None, None, *ctx.sides, ctx.dtype),)


def _loss_fake(
    prediction: Tensor,
    images: Tensor,
    ids: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    height: int,
    width: int,
    normalize: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    losses = prediction.new_empty(ids.shape, dtype=torch.float32)
    return losses, prediction.new_empty(prediction.shape) if save else None


def _loss_backward_fake(upstream: Tensor, difference: Tensor) -> Tensor:
    return torch.empty_like(difference)


def _loss_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _loss_gradients(ctx: Any, output_mask: list[bool], upstream: Tensor) -> tuple[Tensor, None]:
    if output_mask[1]:
        raise NotImplementedError("patch_loss: the kernels have no gradient for the images; impl='reference' has one")
    (difference,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        # With create_graph: a second derivative is refused rather than silently missing.
        upstream = upstream.detach().requires_grad_()
    return _loss_backward(upstream, difference), None


_gather = Operator(
    "gather_patches(Tensor images, Tensor ids, Tensor? mean, Tensor? std, int height, int width, ScalarType dtype)"
    " -> Tensor",
    launcher="patches.kernels:gather_forward",
    fake=_gather_fake,
    flops=None,
)
_gather_backward = Operator(
    "gather_patches_backward(Tensor dout, Tensor ids, SymInt[] image_shape, int height, int width, ScalarType dtype)"
    " -> Tensor",
    launcher="patches.kernels:gather_backward",
    fake=_gather_backward_fake,
    flops=None,
)
_loss = Operator(
    "patch_loss(Tensor prediction, Tensor images, Tensor ids, Tensor? mean, Tensor? std, int height, int width,"
    " bool normalize, bool save) -> (Tensor losses, Tensor difference)",
    launcher="patches.kernels:loss_forward",
    fake=_loss_fake,
    flops=None,
)
_loss_backward = Operator(
    "patch_loss_backward(Tensor upstream, Tensor difference) -> Tensor",
    launcher="patches.kernels:loss_backward",
    fake=_loss_backward_fake,
    flops=None,
)
_gather.differentiable(_gather_save, _gather_gradients, inputs=1)
_gather_backward.differentiable(_gather_backward_save, _gather_backward_gradients, inputs=1)
_loss.differentiable(_loss_save, _loss_gradients, inputs=2)
_loss_backward.not_differentiable("patch_loss: the kernels have no second derivative; impl='reference' has one")
