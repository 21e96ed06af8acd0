"""Our own files: safetensors with the configuration inside."""

import json
import os
from collections.abc import Mapping

from torch import Tensor

from crossmae.files import replacing
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config

CONFIG_KEY = "crossmae_config"


def save(model: MaskedAutoencoder, path: str | os.PathLike[str]) -> None:
    """Write a model and its configuration to one safetensors file; an existing file is replaced whole or not at all."""
    save_state(model.state_dict(), model.config, path)


def save_state(state_dict: Mapping[str, Tensor], config: Config, path: str | os.PathLike[str]) -> None:
    """Like ``save``, for a model whose tensors were gathered elsewhere, such as from shards."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state_dict.items()}
    metadata = {CONFIG_KEY: json.dumps(config.to_dict())}
    with replacing(path) as beside:
        save_file(tensors, beside, metadata=metadata)
