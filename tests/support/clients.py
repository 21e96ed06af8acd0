"""Models of libraries that nobody here wrote, tiny ones, with random values in every parameter."""

import importlib
import warnings
from collections.abc import Mapping

import pytest
import torch
from releases import randomized
from torch import nn

SIZE, PATCH, WIDTH = 32, 8, 32


def imported(name):
    """A library's module; the test is skipped where the library is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn of each other's deprecations
        pytest.importorskip(name.split(".")[0])
        return importlib.import_module(name)


def birder_encoder(**config):
    vit = imported("birder.net.vit").ViT
    usual = {"patch_size": PATCH, "num_layers": 2, "num_heads": 4, "hidden_dim": WIDTH, "mlp_dim": 64}
    return vit(3, 0, config={**usual, "drop_path_rate": 0.0, **config}, size=(SIZE, SIZE))


def birder(name, decoder_depth, encoder=None, **arguments):
    """A registered model with a narrower decoder; its number of heads, 16, is fixed."""
    imported("birder.net.mim.crossmae")
    factory = imported("birder.model_registry").registry.mim_net_factory
    config = {"decoder_embed_dim": WIDTH, "decoder_depth": decoder_depth}
    return factory(name, encoder or birder_encoder(), config=config, size=(SIZE, SIZE), **arguments)


def timm_vit(**arguments):
    vit = imported("timm.models.vision_transformer").VisionTransformer
    usual = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 4, "num_classes": 0}
    return vit(**{**usual, **arguments})


def stable_pretraining(module, name, **arguments):
    kind = getattr(imported(f"stable_pretraining.methods.{module}"), name)
    return kind(timm_vit(), decoder_embed_dim=WIDTH, decoder_depth=2, decoder_num_heads=2, **arguments)


def hugging_face(**config):
    transformers = imported("transformers")
    encoder = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    decoder = {f"decoder_{name}": value for name, value in {**encoder, "num_attention_heads": 2}.items()}
    usual = {"image_size": SIZE, "patch_size": PATCH, "norm_pix_loss": True}
    return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**{**encoder, **decoder, **usual, **config}))


class Lightly(nn.Module):
    """MAE as lightly's users compose it: its masked ViT, its decoder, and layers of their own around it."""

    def __init__(self, **arguments):
        super().__init__()
        modules = imported("lightly.models.modules")
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=timm_vit(**arguments))
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.decoder = modules.MaskedVisionTransformerDecoderTIMM(
            num_patches=(SIZE // PATCH) ** 2, embed_dim=WIDTH, depth=2, num_heads=2
        )
        self.head = nn.Linear(WIDTH, 3 * PATCH**2)

    def forward(self, images):
        utils, shape = imported("lightly.models.utils"), (len(images), self.backbone.sequence_length)
        idx_keep, idx_mask = utils.random_token_mask(size=shape, mask_ratio=0.75, device=images.device)
        visible = self.embed(self.backbone.encode(images=images, idx_keep=idx_keep))
        tokens = utils.set_at_index(utils.repeat_token(self.decoder.mask_token, shape), idx_keep, visible)
        prediction = self.head(utils.get_at_index(self.decoder(tokens), idx_mask))
        target = utils.get_at_index(utils.patchify(images, PATCH), idx_mask - 1)
        return {"loss": nn.functional.mse_loss(prediction, target), "prediction": prediction}


MAKERS = {
    "birder crossmae": lambda: birder("crossmae", decoder_depth=2),
    "birder crossmae_dec512d12": lambda: birder("crossmae_dec512d12", decoder_depth=3),
    "stable-pretraining MAE": lambda: stable_pretraining("mae", "MAE"),
    "stable-pretraining CrossMAE": lambda: stable_pretraining("cross_mae", "CrossMAE", image_size=SIZE),
    "lightly": Lightly,
    "Hugging Face": hugging_face,
}


def client(name):
    """The model, with random values in its parameters."""
    torch.manual_seed(0)
    return randomized(MAKERS[name]())


def pictures(batch=3, dtype=torch.float32):
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)).to(dtype)


def results(model, images, seed=3, **arguments):
    """What a call returns, by name, on random numbers of its own."""
    torch.manual_seed(seed)
    out = model(images, **arguments)
    assert isinstance(out, Mapping)
    return dict(out)
