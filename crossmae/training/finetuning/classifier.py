"""The classifier: an encoder, average pooling over patch tokens, a norm and a linear layer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmae.checkpoint import load
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config, named_config
from crossmae.training.finetuning.recipe import SCRATCH, FinetuningRecipe
from crossmae.training.run_state import AVERAGED, HEAD, MODEL, verify
from crossmae.training.task import TrainedModule

CLASSES = "classes"
_HEAD_DEVIATION = 2e-5  # as in MAE: logits start near zero


class Classifier(TrainedModule):
    """Classifies by an encoder without final norm: the average of its patch tokens is normalized instead (MAE).

    Args:
        model: an encoder without a decoder, see ``encoder_alone``.
        classes: their names, by label.
    """

    def __init__(self, model: MaskedAutoencoder, classes: Sequence[str]) -> None:
        super().__init__()
        self.model, self.classes = model, tuple(classes)
        self.norm = nn.LayerNorm(model.config.encoder_width, eps=model.config.norm_eps)
        self.head = nn.Linear(model.config.encoder_width, len(self.classes))
        nn.init.normal_(self.head.weight, std=_HEAD_DEVIATION)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, C, H, W)``, or, with soft targets ``(B, classes)``, their loss.

        The loss is the mean cross-entropy, in at least float32.
        """
        tokens = self.model.encode(images)
        logits = self.head(self.norm(tokens[:, self.model.config.class_tokens :].mean(dim=1)))
        if targets is None:
            return logits
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(dtype), targets.to(dtype))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers by depth, in the form timm expects: embedding and blocks; norm and head match nothing."""
        return {
            "stem": r"^model\.encoder\.(?:cls_token|positions|patch_embed)",
            "blocks": [(r"^model\.encoder\.blocks\.(\d+)", None)],
        }


def parameter_groups(classifier: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameters by depth, with ``lr_scale``: 1 for the head, multiplied by ``layer_decay`` for each block below.

    No weight decay for biases, norms, class tokens and positions.
    """
    from timm.optim import param_groups_layer_decay

    undecayed = ["model.encoder.cls_token", "model.encoder.positions"]
    return param_groups_layer_decay(classifier, weight_decay, no_weight_decay_list=undecayed, layer_decay=layer_decay)


def starting_point(recipe: FinetuningRecipe) -> MaskedAutoencoder:
    """The encoder that a recipe starts from, without decoder; from scratch, initialized by the recipe's seed.

    Raises:
        OSError, TypeError, ValueError: if there is no such checkpoint, or its model is not the recipe's.
    """
    if recipe.checkpoint is None:
        raise ValueError(f"no checkpoint given: --checkpoint takes a file, or {SCRATCH} for random weights")
    named = None
    if recipe.model is not None:
        own = recipe.model_options if recipe.checkpoint == SCRATCH else {}
        named = named_config(recipe.model, recipe.image_size, **own)
    if recipe.checkpoint == SCRATCH:
        assert named is not None  # a recipe from scratch names a model
        torch.manual_seed(recipe.seed)
        model = MaskedAutoencoder(named)
    else:
        model = load(recipe.checkpoint, recipe.image_size, **recipe.model_options)
        if named is not None:
            _refuse_another(recipe, named, model.config)
    return encoder_alone(model, recipe.drop_path)


def _refuse_another(recipe: FinetuningRecipe, named: Config, found: Config) -> None:
    fields = ("encoder_width", "encoder_depth", "encoder_heads", "patch_size", "mlp_ratio")
    other = [
        f"{field} {getattr(found, field)} and not {getattr(named, field)}"
        for field in fields
        if getattr(found, field) != getattr(named, field)
    ]
    if other:
        raise ValueError(f"{recipe.checkpoint} is no {recipe.model}: it has {', '.join(other)}; model=null accepts it")


def encoder_alone(model: MaskedAutoencoder, drop_path: float = 0.0) -> MaskedAutoencoder:
    """A model's encoder without decoder and final norm, with copies of its weights."""
    config = model.config
    alone = MaskedAutoencoder(
        replace(
            config,
            decoder=None,
            feature_maps=(config.encoder_depth,),
            final_norm=False,
            decoder_self_attention=False,
            drop_path=drop_path,
        )
    )
    state = model.encoder.state_dict()
    if not config.embeds_class:  # CrossMAE; an encoder without a decoder adds all rows
        state["positions"] = state["positions"].clone()
        state["positions"][:, : config.class_tokens] = 0
    alone.encoder.load_state_dict({name: state[name] for name in alone.encoder.state_dict()})
    return alone


def load_classifier(checkpoint: Path) -> Classifier:
    """The classifier of a fine-tuning run's checkpoint, a folder ``checkpoints/step-...``.

    It has the averaged weights, if the run kept any.

    Raises:
        OSError, ValueError: if it is not such a checkpoint, or is damaged.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    model = load(checkpoint / MODEL)
    verify(checkpoint, model.config)
    if not (checkpoint / HEAD).is_file():
        raise ValueError(f"{checkpoint} is not a checkpoint of a classifier: it has no {HEAD}")
    with safe_open(checkpoint / HEAD, framework="pt") as opened:
        classes = json.loads((opened.metadata() or {})[CLASSES])
    classifier = Classifier(model, classes)
    averaged = (checkpoint / AVERAGED).is_file()
    state = load_file(checkpoint / (AVERAGED if averaged else HEAD))
    of_model = {} if averaged else {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    classifier.load_state_dict({**of_model, **state})
    return classifier.eval()
