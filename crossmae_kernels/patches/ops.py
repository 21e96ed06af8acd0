"""Gather of patches and loss on patches as PyTorch operators: schemas, fake implementations, autograd.

Nothing is cast under autocast: the public functions say which dtype rows are to have, and the loss takes its arguments
as they come and computes in float32. ``impl``'s choice was made before: these operators run the Triton kernels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "gather_patches(Tensor images, Tensor ids, Tensor? mean, Tensor? std, int patch_size, ScalarType dtype) -> Tensor"
)
_library.define(
    "gather_patches_backward(Tensor dout, Tensor ids, SymInt[] image_shape, int patch_size, ScalarType dtype) -> Tensor"
)
_library.define(
    "patch_loss(Tensor prediction, Tensor images, Tensor ids, Tensor? mean, Tensor? std, int patch_size,"
    " bool normalize, bool keep) -> (Tensor losses, Tensor difference)"
)
_library.define("patch_loss_backward(Tensor upstream, Tensor difference) -> Tensor")


def gather_patches(
    images: Tensor, ids: Tensor, patch_size: int, mean: Tensor | None, std: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See ``crossmae_kernels.gather_patches``; arguments are taken as checked. Rows come in ``dtype``."""
    return torch.ops.crossmae_kernels.gather_patches(images, ids, mean, std, patch_size, dtype)


def patch_loss(
    prediction: Tensor,
    images: Tensor,
    predicted_ids: Tensor,
    patch_size: int,
    normalize: bool,
    mean: Tensor | None,
    std: Tensor | None,
) -> Tensor:
    """See ``crossmae_kernels.patch_loss``; arguments are taken as checked. The loss of each patch, ``(B, Q)``."""
    keep = torch.is_grad_enabled() and prediction.requires_grad
    losses, _ = torch.ops.crossmae_kernels.patch_loss(
        prediction, images, predicted_ids, mean, std, patch_size, normalize, keep
    )
    return losses


def _gather(
    images: Tensor, ids: Tensor, mean: Tensor | None, std: Tensor | None, patch_size: int, dtype: torch.dtype
) -> Tensor:
    from crossmae_kernels.patches import launch

    return launch.gather_forward(images, ids, mean, std, patch_size, dtype)


def _gather_fake(
    images: Tensor, ids: Tensor, mean: Tensor | None, std: Tensor | None, patch_size: int, dtype: torch.dtype
) -> Tensor:
    return images.new_empty(*ids.shape, images.shape[1] * patch_size**2, dtype=dtype)


def _gather_backward(
    dout: Tensor, ids: Tensor, image_shape: Sequence[int], patch_size: int, dtype: torch.dtype
) -> Tensor:
    from crossmae_kernels.patches import launch

    return launch.gather_backward(dout, ids, image_shape, patch_size, dtype)


def _gather_backward_fake(
    dout: Tensor, ids: Tensor, image_shape: Sequence[int], patch_size: int, dtype: torch.dtype
) -> Tensor:
    return dout.new_empty(image_shape, dtype=dtype)


def _gather_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, ids, _, _, ctx.patch_size, _ = inputs
    ctx.image_shape, ctx.dtype = images.shape, images.dtype
    ctx.save_for_backward(ids)


def _gather_autograd(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    dimages = None
    if ctx.needs_input_grad[0]:
        (ids,) = ctx.saved_tensors
        dimages = torch.ops.crossmae_kernels.gather_patches_backward(
            dout, ids, ctx.image_shape, ctx.patch_size, ctx.dtype
        )
    return dimages, None, None, None, None, None


def _gather_second_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dout, ids, _, ctx.patch_size, _ = inputs
    ctx.dtype = dout.dtype
    ctx.save_for_backward(ids)


def _gather_second_autograd(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    # The gather is linear: its gradient's gradient is a gather again.
    (ids,) = ctx.saved_tensors
    ddout = torch.ops.crossmae_kernels.gather_patches(gradient, ids, None, None, ctx.patch_size, ctx.dtype)
    return ddout, None, None, None, None


def _loss(
    prediction: Tensor,
    images: Tensor,
    ids: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch_size: int,
    normalize: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """An empty difference where it is not to be kept."""
    from crossmae_kernels.patches import launch

    losses, difference = launch.loss_forward(prediction, images, ids, mean, std, patch_size, normalize, keep)
    return losses, prediction.new_empty(0) if difference is None else difference


def _loss_fake(
    prediction: Tensor,
    images: Tensor,
    ids: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    patch_size: int,
    normalize: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    losses = prediction.new_empty(ids.shape, dtype=torch.float32)
    return losses, prediction.new_empty(prediction.shape if keep else (0,))


def _loss_backward(upstream: Tensor, difference: Tensor) -> Tensor:
    from crossmae_kernels.patches import launch

    return launch.loss_backward(upstream, difference)


def _loss_backward_fake(upstream: Tensor, difference: Tensor) -> Tensor:
    return torch.empty_like(difference)


def _loss_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, difference = output
    ctx.mark_non_differentiable(difference)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(difference)


def _loss_autograd(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.needs_input_grad[1]:
        raise NotImplementedError(
            "patch_loss: the Triton kernel has no gradient to the images; impl='reference' has one"
        )
    dprediction = None
    if upstream is not None and ctx.needs_input_grad[0]:
        (difference,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            # With create_graph: a second derivative is to be refused, not to be silently missing.
            upstream = upstream.detach().requires_grad_()
        dprediction = torch.ops.crossmae_kernels.patch_loss_backward(upstream, difference)
    return dprediction, None, None, None, None, None, None, None


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("patch_loss: the Triton kernel has no second derivative; impl='reference' has one")


for _device in ("CPU", "CUDA"):
    _library.impl("gather_patches", _gather, _device)
    _library.impl("gather_patches_backward", _gather_backward, _device)
    _library.impl("patch_loss", _loss, _device)
    _library.impl("patch_loss_backward", _loss_backward, _device)
torch.library.register_fake(f"{NAMESPACE}::gather_patches", _gather_fake, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::gather_patches_backward", _gather_backward_fake, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::patch_loss", _loss_fake, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::patch_loss_backward", _loss_backward_fake, lib=_library)
torch.library.register_autograd(
    f"{NAMESPACE}::gather_patches", _gather_autograd, setup_context=_gather_setup_context, lib=_library
)
torch.library.register_autograd(
    f"{NAMESPACE}::gather_patches_backward",
    _gather_second_autograd,
    setup_context=_gather_second_setup_context,
    lib=_library,
)
torch.library.register_autograd(
    f"{NAMESPACE}::patch_loss", _loss_autograd, setup_context=_loss_setup_context, lib=_library
)
torch.library.register_autograd(f"{NAMESPACE}::patch_loss_backward", _no_second_derivative, lib=_library)
