"""Training code written for a release's model, on this package's operations."""

from typing import Any

import torch
from torch import Tensor, nn

from crossmae.checkpoint import from_release, to_release
from crossmae.model import MaskedAutoencoder


def accelerate(model: nn.Module, **arguments: Any) -> nn.Module:
    """Let a model whose tensors have a release's names, CrossMAE's or MAE's, run on this package, in place.

    Its parameters stay the ones they are, so optimizers, checkpoints and hooks on parameters notice nothing; its
    submodules are no longer called. ``model(images, mask_ratio=0.75, kept_mask_ratio=0.25)`` then returns the loss, the
    predicted patches ``(B, Q, P)`` and the mask ``(B, L)``, 1 where a patch is predicted. Random masks are drawn as the
    release draws them.

    Args:
        model: any module with those parameters, for example the release's own.
        arguments: the constructor arguments that it was built with; see ``from_release``.

    Returns:
        The model.

    Raises:
        TypeError, ValueError: as ``from_release``, before anything is changed.
    """
    ours = from_release(model.state_dict(), **arguments)
    _share(ours, model)

    def forward(images: Tensor, mask_ratio: float = 0.75, kept_mask_ratio: float = 0.25) -> tuple[Tensor, ...]:
        ours.train(model.training)
        prediction_ratio = mask_ratio if ours.config.decoder == "mae" else kept_mask_ratio
        out = ours(images, mask_ratio, prediction_ratio, rounding="release")
        mask = torch.zeros(len(images), ours.config.patches, device=images.device)
        return out.loss, out.prediction, mask.scatter(1, out.masking.predicted_ids, 1)

    model.forward = forward
    return model


def _share(ours: MaskedAutoencoder, model: nn.Module) -> None:
    """Put the model's own tensors in the place of ours."""
    theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = ours.state_dict()
    for name, their_name in zip(state, to_release(state), strict=True):
        owner, _, leaf = name.rpartition(".")
        setattr(ours.get_submodule(owner), leaf, theirs[their_name])
