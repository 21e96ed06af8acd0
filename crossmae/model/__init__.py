"""The model: its configuration, encoder, the decoders of both families, and the autoencoder made of these."""

from crossmae.model.autoencoder import MaskedAutoencoder, Output, create_model
from crossmae.model.config import Config, list_models

__all__ = ["Config", "MaskedAutoencoder", "Output", "create_model", "list_models"]
