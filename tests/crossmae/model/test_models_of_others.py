"""A configuration says what models of other libraries do: renamed weights give their predictions and loss."""

import re

import clients
import pytest
import torch
from releases import randomized

import crossmae

SIZES = {
    "image_size": (32, 32), "patch_size": 8, "encoder_width": 32, "encoder_depth": 2, "encoder_heads": 4,
    "decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2,
}  # fmt: skip
BIRDER = [
    (r"encoder\.(class_token|pos_embedding)", r"encoder.\1"),
    (r"encoder\.conv_proj\.(.+)", r"encoder.patch_embed.\1"),
    (r"encoder\.encoder\.block\.(.+)", r"encoder.blocks.\1"),
    (r"wfm\.linear\.(.+)", r"decoder.mixing.\1"),
    (r"decoder_norms\.(.+)", r"decoder.mixing.norms.\1"),
    (r"decoder_layers\.(.+)", r"decoder.blocks.\1"),
    (r"decoder_norm\.(.+)", r"decoder.norm.\1"),
    (r"pred\.(.+)", r"decoder.head.\1"),
    (r"(mask_token|decoder_pos_embed)", r"decoder.\1"),
]
WORDS = {
    "class_token": "cls_token", "decoder_pos_embed": "positions", "pos_embedding": "positions",
    "pos_embed": "positions", "patch_embed.proj": "patch_embed", "mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2.",
    "decoder.transformer": "decoder",
    "encoder.vit": "encoder", "context_proj": "embed", "output_proj": "head", "final_norm": "norm",
    "feature_mixer.linear": "mixing", "context_norms": "mixing.norms", "decoder.pred": "decoder.head",
}  # fmt: skip


def ours(config, state, unused=()):
    """A model of ours with a state by other names; decoders' tables without rows of class tokens get zeros for them."""
    named = {}
    for name, tensor in state.items():
        for pattern, replacement in BIRDER:
            if re.fullmatch(pattern, name):
                name = re.sub(pattern, replacement, name)
                break
        for word, mine in WORDS.items():
            name = name.replace(word, mine)
        named[name] = tensor.reshape(1, *tensor.shape[-2:]) if name.endswith(".positions") else tensor
    model = crossmae.MaskedAutoencoder(config).double()
    missing = model.decoder.positions.shape[1] - named["decoder.positions"].shape[1]
    named["decoder.positions"] = torch.nn.functional.pad(named["decoder.positions"], (0, 0, missing, 0))
    found = model.load_state_dict(named, strict=False)
    assert not found.missing_keys
    assert {name.rpartition(".")[0] for name in found.unexpected_keys} == set(unused)
    return model


def same(loss, prediction, theirs_loss, theirs_prediction):
    torch.testing.assert_close(loss, theirs_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(prediction, theirs_prediction, rtol=1e-9, atol=1e-11)


def test_birder(monkeypatch):
    theirs = randomized(clients.birder("crossmae", 2, clients.birder_encoder(mlp_dim=128))).double().eval()
    config = crossmae.Config(
        **{**SIZES, "decoder_heads": 16}, feature_maps=(1, 2), final_norm=True, last_mix_norm=False,
        no_embed_class=False, pos_embed="learn",
    )  # fmt: skip
    model, images = ours(config, theirs.state_dict()), clients.pictures(dtype=torch.float64)
    module, drawn = clients.imported("birder.net.mim.crossmae"), []
    draw = module.uniform_mask
    monkeypatch.setattr(module, "uniform_mask", lambda *given, **named: drawn.append(draw(*given, **named)) or drawn[0])
    out = theirs(images)
    mask, visible_ids, _ = drawn[0]
    predicted_ids = mask.bool().nonzero()[:, 1].view(len(images), -1)
    found = model(images, masking=crossmae.Masking(visible_ids, predicted_ids))
    same(found.loss, found.prediction, out["loss"], out["pred"].view_as(found.prediction))


def test_stable_pretraining_crossmae():
    theirs = clients.client("stable-pretraining CrossMAE").double().train()
    config = crossmae.Config(
        **SIZES, feature_maps=(0, 1, 2), decoder_norm_eps=1e-5, pixel_order="chw", pos_embed="learn"
    )
    model, images = ours(config, theirs.state_dict(), ["encoder.norm"]), clients.pictures(dtype=torch.float64)
    torch.manual_seed(3)
    out = theirs(images)
    found = model(images, masking=crossmae.Masking.from_mask(out.mask.bool()))
    same(found.loss, found.prediction, out.loss, out.predictions.view_as(found.prediction))


def test_stable_pretraining_mae():
    """Its mask token has the encoder's width and passes a linear layer, which a token of ours takes up."""
    theirs = clients.client("stable-pretraining MAE").double().train()
    state = theirs.state_dict()
    query = theirs.decoder.transformer.query_proj
    state["decoder.mask_token"] = query(state["decoder.mask_token"]).detach()
    config = crossmae.Config(
        **SIZES, decoder="mae", decoder_norm_eps=1e-5, pixel_order="chw", pos_embed="learn", decoder_class_token=False
    )
    model, images = ours(config, state, ["decoder.query_proj"]), clients.pictures(dtype=torch.float64)
    torch.manual_seed(3)
    out = theirs(images)
    masking = crossmae.Masking.from_mask(out.mask.bool())
    found = model(images, masking=masking)
    predictions = out.predictions.gather(1, masking.predicted_ids[:, :, None].expand_as(found.prediction))
    same(found.loss, found.prediction, out.loss, predictions)


def test_hugging_face_s_pixio():
    """An encoder with eight class tokens and learned positions."""
    transformers = clients.imported("transformers")
    if not hasattr(transformers, "PixioModel"):
        pytest.skip("this version of transformers has no Pixio")
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    theirs = randomized(transformers.PixioModel(transformers.PixioConfig(**settings, n_cls_tokens=8))).double().eval()
    state, named = theirs.state_dict(), {}
    for name in [name for name in state if ".q_proj." in name]:
        parts = [state.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        state[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    words = {
        "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "positions",
        "embeddings.patch_embeddings.projection": "patch_embed", "layernorm_before": "norm1",
        "layernorm_after": "norm2", "attention.o_proj": "attn.proj", "layers.": "blocks.", "layernorm.": "norm.",
    }  # fmt: skip
    for name, tensor in state.items():
        for word, mine in words.items():
            name = name.replace(word, mine)
        named[name] = tensor
    config = crossmae.Config(**SIZES, decoder=None, class_tokens=8, pos_embed="learn")
    model = crossmae.MaskedAutoencoder(config).double()
    model.encoder.load_state_dict(named)
    images = clients.pictures(dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        torch.testing.assert_close(model.forward_features(images), expected, rtol=1e-9, atol=1e-11)
