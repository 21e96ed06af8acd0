"""CrossMAE: masked autoencoders whose decoder is cross-attention only (arXiv 2401.14391)."""

from crossmae.acceleration import accelerate, restore
from crossmae.checkpoint import CheckpointWarning, from_release, load, load_encoder, save, to_release
from crossmae.export import export
from crossmae.flops import decoder_macs
from crossmae.graphs import graphed
from crossmae.masking import (
    Masking,
    block_masking,
    cell_masking,
    furthest_masking,
    grid_masking,
    random_masking,
)
from crossmae.model import (
    Config,
    CrossAttentionDecoder,
    MaskedAutoencoder,
    Output,
    create_model,
    list_models,
    position_embedding,
)
from crossmae.reconstruction import reconstruct

__all__ = [
    "CheckpointWarning",
    "Config",
    "CrossAttentionDecoder",
    "MaskedAutoencoder",
    "Masking",
    "Output",
    "accelerate",
    "block_masking",
    "cell_masking",
    "create_model",
    "decoder_macs",
    "export",
    "from_release",
    "furthest_masking",
    "graphed",
    "grid_masking",
    "list_models",
    "load",
    "load_encoder",
    "position_embedding",
    "random_masking",
    "reconstruct",
    "restore",
    "save",
    "to_release",
]
