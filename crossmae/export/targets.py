"""``export``: convert a model to another library's format."""

from typing import get_args

import torch

from crossmae.export import detectron2, huggingface, release, timm, torchvision
from crossmae.export.exported import Exported, Target
from crossmae.model import MaskedAutoencoder

_FORMATS = {
    "timm": timm.exported,
    "hf": huggingface.exported,
    "torchvision": torchvision.exported,
    "detectron2": detectron2.exported,
    "release": release.exported,
}


def export(model: MaskedAutoencoder, target: Target) -> Exported:
    """Convert a model to another library's format: tensor names, configuration, and notes.

    Only "release", and "hf" for MAE, include the decoder. Features equal those of ``model.encode``, except for
    detectron2, whose backbone has no class token; the result's ``notes`` say what each library needs for that.

    Args:
        model: with or without a decoder.
        target: ``timm``'s VisionTransformer; ``hf``, Hugging Face's ViTMAE for MAE, else its ViT; ``torchvision``'s
            VisionTransformer; ``detectron2``'s ViT, the backbone of ViTDet; ``release``, that of CrossMAE or MAE.

    Raises:
        TypeError: if the model is not one of this package.
        ValueError: if the target is unknown, or the library cannot express the model; says why.
    """
    if not isinstance(model, MaskedAutoencoder):
        raise TypeError(f"model must be a MaskedAutoencoder, as crossmae.load returns, got {type(model).__name__}")
    if target not in _FORMATS:
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}")
    state, config, notes = _FORMATS[target](model)
    copies = {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in state.items()}
    return Exported(target, copies, config, tuple(notes))
