"""The model: its configuration, encoder, the decoders of both families, and the autoencoder made of these."""

from crossmae.model.autoencoder import MaskedAutoencoder, Output, create_model
from crossmae.model.config import Config, list_models
from crossmae.model.cross_attention_decoder import CrossAttentionDecoder
from crossmae.model.positions import position_embedding

__all__ = [
    "Config",
    "CrossAttentionDecoder",
    "MaskedAutoencoder",
    "Output",
    "create_model",
    "list_models",
    "position_embedding",
]
