"""CrossMAE: masked autoencoders whose decoder is cross-attention only (arXiv 2401.14391)."""

from crossmae.checkpoint import from_release, load, save, to_release
from crossmae.config import Config, list_models
from crossmae.masking import Masking, block_masking, grid_masking, random_masking
from crossmae.model import MaskedAutoencoder, Output, create_model

__all__ = [
    "Config",
    "MaskedAutoencoder",
    "Masking",
    "Output",
    "block_masking",
    "create_model",
    "from_release",
    "grid_masking",
    "list_models",
    "load",
    "random_masking",
    "save",
    "to_release",
]
