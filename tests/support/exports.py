"""Models to export, and what their encoders are in float64."""

import torch
from plain_vit import features
from releases import randomized

import crossmae
from crossmae.model.config import Config
from crossmae_kernels.testing import assert_within_budget, budgets

KINDS = {"mixing": {"feature_maps": (0, 2, 3)}, "one map": {}, "MAE": {"decoder": "mae"}, "alone": {"decoder": None}}


def model_of(kind, **fields):
    """A small model with positions of its own, for the class token too, biases and norms that matter."""
    sizes = {"image_size": (32, 32), "patch_size": 8, "encoder_width": 24, "encoder_depth": 3, "encoder_heads": 3}
    sizes |= {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
    model = randomized(crossmae.MaskedAutoencoder(Config(**{**sizes, **KINDS[kind], **fields}))).eval()
    for part in (model.encoder, model.decoder):
        if hasattr(part, "positions"):
            torch.nn.init.normal_(part.positions, std=0.2)
    return model


def images_for(model, batch=2):
    return torch.randn(batch, model.config.channels, *model.config.image_size)


def weights_of(model):
    """The encoder's tensors by the releases' names, with the row of positions that CrossMAE ignores as zero."""
    tensors = crossmae.to_release({n: t.clone() for n, t in model.state_dict().items() if n.startswith("encoder.")})
    if not model.config.embeds_class:
        tensors["pos_embed"][:, : model.config.class_tokens] = 0
    return tensors


def assert_features(found, model, images):
    """Features are the model's own: within what the model itself may err against float64."""
    exact = {"features": features(weights_of(model), images, model.config.encoder_heads, model.config.norm_eps)}
    with torch.no_grad():
        allowed = budgets(lambda: {"features": model.encode(images)}, exact)
        assert_within_budget({"features": model.encode(images)}, exact, allowed)
    assert_within_budget({"features": found}, exact, allowed)


def assert_same_encoder(model, loaded):
    """Bit for bit, and in all that no tensor tells."""
    expected, found = weights_of(model), weights_of(loaded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for field in ("image_size", "patch_size", "encoder_heads", "norm_eps"):
        assert getattr(loaded.config, field) == getattr(model.config, field), field
    assert loaded.config.norms_last_map == model.config.norms_last_map
