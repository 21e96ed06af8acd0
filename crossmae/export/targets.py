"""``export``: from a model to another library's format."""

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
    """A model in another library's format: names of tensors, configuration, and what else has to be told.

    All but "release" hold the encoder alone, and "hf" MAE's decoder too. Features are those of ``model.encode`` but for
    detectron2, whose backbone has no class token; ``notes`` of the result say what each library needs for that.

    Args:
        model: with or without a decoder.
        target: ``timm``'s VisionTransformer; ``hf``, Hugging Face's ViTMAE for MAE and ViT else; ``torchvision``'s
            VisionTransformer; ``detectron2``'s ViT, the backbone of ViTDet; ``release``, that of CrossMAE or MAE.

    Raises:
        TypeError: for a model that is none of this package.
        ValueError: for another target; for a model that the library cannot express, saying why.
    """
    if not isinstance(model, MaskedAutoencoder):
        raise TypeError(f"model must be a MaskedAutoencoder, as crossmae.load returns, got {type(model).__name__}")
    if target not in _FORMATS:
        raise ValueError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}")
    state, config, notes = _FORMATS[target](model)
    copies = {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in state.items()}
    return Exported(target, copies, config, tuple(notes))
