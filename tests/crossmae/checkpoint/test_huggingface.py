"""Folders of Hugging Face's layout, written here as its clients write them."""

import json

import pytest
import torch
from checkpoint_files import agrees_with_the_release, encoder_of, heard, saved
from golden_cases import Case
from plain_vit import features
from safetensors.torch import save_file

import crossmae

WEIGHTS = Case("mae").weights
CONFIG = {
    "model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"], "hidden_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 3, "intermediate_size": 96, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 32,
    "patch_size": 8, "num_channels": 3, "qkv_bias": True, "decoder_num_attention_heads": 2, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2, "decoder_intermediate_size": 64, "norm_pix_loss": True, "mask_ratio": 0.75,
}  # fmt: skip
# Of a block: the release's name, what save_pretrained writes, and the modules of version 5.
BLOCK = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
PARTS = (("attention.attention.{}", ("query", "key", "value")), ("attention.{}_proj", ("q", "k", "v")))


def theirs(weights, vit="vit.", encoder="encoder.layer", decoder="decoder.decoder_encoder.layer", version=0):
    """Tensors of MAE's release by Hugging Face's names, queries, keys and values apart."""
    tensors = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] in ("blocks", "decoder_blocks"):
            place = f"{vit}{encoder}.{parts[1]}" if parts[0] == "blocks" else f"{decoder}.{parts[1]}"
            inner, kind = ".".join(parts[2:-1]), parts[-1]
            if inner == "attn.qkv":
                form, letters = PARTS[version]
                for letter, part in zip(letters, tensor.chunk(3), strict=True):
                    tensors[f"{place}.{form.format(letter)}.{kind}"] = part.clone()
            else:
                tensors[f"{place}.{BLOCK[inner][version]}.{kind}"] = tensor
        elif parts[0] == "patch_embed":
            tensors[f"{vit}embeddings.patch_embeddings.projection.{parts[-1]}"] = tensor
        elif parts[0] == "norm":
            tensors[f"{vit}layernorm.{parts[-1]}"] = tensor
        elif name in ("cls_token", "pos_embed"):
            tensors[f"{vit}embeddings.{name.replace('pos_embed', 'position_embeddings')}"] = tensor
        else:
            tensors[f"decoder.{name}"] = tensor
    return tensors


SPELLINGS = {
    "saved": {},
    "published decoder": {"decoder": "decoder.decoder_layers"},
    "in memory": {"encoder": "layers", "decoder": "decoder.decoder_layers", "version": 1},
}


def folder_of(tensors, folder, kind="safetensors", shards=1, **config):
    """As save_pretrained leaves it."""
    folder.mkdir()
    base = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{base}.{kind}"] if shards == 1 else [f"{base}-{i + 1}-of-{shards}.{kind}" for i in range(shards)]
    for i, name in enumerate(names):
        part = {key: tensors[key] for key in sorted(tensors)[i::shards]}
        if kind == "safetensors":
            save_file(part, folder / name, metadata={"format": "pt"})
        else:
            torch.save(part, folder / name)
    if shards > 1:
        places = {key: names[i % shards] for i, key in enumerate(sorted(tensors))}
        (folder / f"{base}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    values = {name: value for name, value in {**CONFIG, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_folders_of_vitmae(spelling, shards, kind, tmp_path):
    folder = folder_of(theirs(WEIGHTS, **SPELLINGS[spelling]), tmp_path / "mae", kind, shards)
    model, messages = heard(folder)
    assert agrees_with_the_release(model, "mae")
    assert not messages
    one = sorted(folder.glob("*model*"))[-1]  # the file itself, or the index
    if shards == 1 or one.suffix == ".json":
        assert agrees_with_the_release(heard(one)[0], "mae")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module."])
def test_wrapped_and_bfloat16(prefix, tmp_path):
    tensors = {f"{prefix}{name}": tensor.bfloat16() for name, tensor in theirs(WEIGHTS).items()}
    model, messages = heard(folder_of(tensors, tmp_path / "mae"), image_size=64)
    assert not messages
    expected = {name: tensor.bfloat16() for name, tensor in encoder_of(WEIGHTS).items()}
    assert torch.equal(model.encoder.blocks[1].attn.qkv.weight, expected["blocks.1.attn.qkv.weight"].float())
    assert model.config.image_size == (64, 64)


@pytest.mark.parametrize("eps", [1e-6, 1e-12, 1e-2, None])
def test_the_eps_of_norms_is_honoured(eps, tmp_path):
    model, _ = heard(folder_of(theirs(WEIGHTS), tmp_path / "mae", layer_norm_eps=eps))
    eps = 1e-12 if eps is None else eps  # what is left out has the client's default
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {eps}
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        encoded = model.encode(images).double()
    torch.testing.assert_close(encoded, features(encoder_of(WEIGHTS), images, 3, eps), rtol=0, atol=1e-5)


ENCODERS = {
    "ViTMAEModel": ("", {}, {}),
    "ViTModel": ("", {"model_type": "vit"}, {"pooler.dense.weight": torch.ones(24, 24)}),
    "ViTForImageClassification": ("vit.", {"model_type": "vit"}, {"classifier.weight": torch.ones(5, 24)}),
}


@pytest.mark.parametrize("spelling", ["saved", "in memory"])
@pytest.mark.parametrize("client", ENCODERS)
def test_encoders_alone(client, spelling, tmp_path):
    vit, config, on_top = ENCODERS[client]
    tensors = {**theirs(encoder_of(WEIGHTS), vit=vit, **SPELLINGS[spelling]), **on_top}
    model, messages = heard(folder_of(tensors, tmp_path / "encoder", **config))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        encoded = model.encode(images).double()
    torch.testing.assert_close(encoded, features(encoder_of(WEIGHTS), images, 3), rtol=0, atol=1e-5)
    assert model.config.decoder is None
    assert [name in messages[0] for name in on_top] == [True] * len(on_top)


def test_without_config_json_the_rest_is_asked_for(tmp_path):
    path = saved(theirs(WEIGHTS), tmp_path / "state.pth")
    with pytest.raises(
        ValueError,
        match=r"no config.json beside it, .* pass num_heads=, norm_eps=, decoder_num_heads=, norm_pix_loss=$",
    ):
        crossmae.load(path)
    given = {"num_heads": 3, "norm_eps": 1e-6, "decoder_num_heads": 2, "norm_pix_loss": True}
    model, messages = heard(path, **given)
    assert agrees_with_the_release(model, "mae")
    assert not messages
    folder = folder_of(theirs(WEIGHTS), tmp_path / "folder")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json beside it"):
        crossmae.load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "deit"}, "config.json describes a model of type 'deit'"),
        ({"model_type": None}, "config.json describes a model of type None"),
        ({"hidden_act": "relu"}, "config.json asks for hidden_act 'relu'"),
        ({"qkv_bias": False}, "config.json asks for qkv_bias False"),
        ({"patch_size": 16}, "patch_size is 8 according to its tensors, but 16 according to its config.json"),
        (
            {"patch_size": [8, 16]},
            r"patch_size is 8 according to its tensors, but \(8, 16\) according to its config.json",
        ),
        ({"patch_size": [8]}, r"config.json: patch_size must be an integer or \(height, width\), .*, got \[8\]"),
        ({"image_size": [32, 32, 3]}, r"image_size must be \(height, width\), 2 integers, got \[32, 32, 3\]"),
        ({"image_size": "32"}, r"image_size must be .* got '32'"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps must be a number, got '1e-6'"),
        ({"norm_pix_loss": "false"}, "norm_pix_loss must be True or False, got 'false'"),
        ({"num_attention_heads": True}, "num_attention_heads must be an integer, got True"),
        ({"hidden_size": 768}, "config.json: hidden_size is 768, but 24 according to the shape of cls_token"),
        (
            {"intermediate_size": 3072},
            "intermediate_size is 3072, but 96 according to the shape of blocks.0.mlp.fc1.weight",
        ),
        ({"num_hidden_layers": 12}, "num_hidden_layers is 12, but there are 3 blocks: missing blocks.3"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, but there are 3 blocks$"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3', but there are 3 blocks$"),
        ({"decoder_hidden_size": 512}, "decoder_hidden_size is 512, but 16 according to the shape of mask_token"),
        (
            {"decoder_intermediate_size": 2048},
            "decoder_intermediate_size is 2048, but 64 according to the shape of decoder_blo",
        ),
        ({"decoder_num_hidden_layers": 8}, "decoder_num_hidden_layers is 8, .*: missing decoder_blocks.2"),
        (
            {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12},
            "hidden_size is 768, .*; num_hidden_layers is 12",
        ),
        (
            {"image_size": 64},
            r"image_size is \(32, 32\) according to its tensors, but \(64, 64\) according to its config.json",
        ),
        ({"num_channels": 1}, "channels is 3 according to its tensors, but 1 according to its config.json"),
        ({"num_attention_heads": 5}, "encoder_heads must divide encoder_width 24, got 5"),
    ],
)
def test_configurations_that_do_not_fit(config, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        crossmae.load(folder_of(theirs(WEIGHTS), tmp_path / "folder", **config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_config_that_is_none(text, tmp_path):
    folder = folder_of(theirs(WEIGHTS), tmp_path / "folder")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json cannot be read"):
        crossmae.load(folder)


def test_sizes_as_pairs_and_zero_tables(tmp_path):
    # A model that was only constructed has tables of zeros; then config.json tells the grid.
    tensors = theirs({**WEIGHTS, "pos_embed": torch.zeros(1, 17, 24), "decoder_pos_embed": torch.zeros(1, 17, 16)})
    model, messages = heard(folder_of(tensors, tmp_path / "mae", image_size=[16, 64], patch_size=[8, 8]))
    assert model.config.image_size == (16, 64)
    assert not messages
    with pytest.raises(
        ValueError,
        match=r"image_size is \(16, 64\) according to its config.json, but \(32, 32\) according to the arguments",
    ):
        crossmae.load(tmp_path / "mae", img_size=32)


@pytest.mark.parametrize("missing", ["vit.encoder.layer.1.attention.attention.key.bias", "decoder.mask_token"])
def test_missing_tensors_are_named(missing, tmp_path):
    tensors = theirs(WEIGHTS)
    del tensors[missing]
    with pytest.raises(ValueError, match=r"missing blocks.1.attn.qkv.bias|no mask_token"):
        crossmae.load(folder_of(tensors, tmp_path / "mae"))


@pytest.mark.parametrize("value", [None, "32", [], {}])
@pytest.mark.parametrize(
    "name", ["layer_norm_eps", "num_attention_heads", "image_size", "patch_size", "norm_pix_loss", "hidden_size"]
)
def test_values_of_another_type(name, value, tmp_path):
    folder = folder_of(theirs(WEIGHTS), tmp_path / "mae")
    (folder / "config.json").write_text(json.dumps({**CONFIG, name: value}))
    with pytest.raises(ValueError, match=rf"config.json: {name} (must be|is) .*"):
        crossmae.load(folder)


def test_sizes_that_are_left_out_are_read_off(tmp_path):
    sizes = dict.fromkeys(name for name in CONFIG if name.endswith(("hidden_size", "_layers", "intermediate_size")))
    assert len(sizes) == 6
    assert agrees_with_the_release(heard(folder_of(theirs(WEIGHTS), tmp_path / "mae", **sizes))[0], "mae")


@pytest.mark.parametrize(("prefix", "last"), [("vit.encoder.layer", 2), ("decoder.decoder_encoder.layer", 1)])
def test_a_missing_last_layer_is_missed(prefix, last, tmp_path):
    tensors = {name: t for name, t in theirs(WEIGHTS).items() if not name.startswith(f"{prefix}.{last}.")}
    with pytest.raises(
        ValueError, match=rf"hidden_layers is {last + 1}, but there are {last} blocks: missing .*{last}"
    ):
        crossmae.load(folder_of(tensors, tmp_path / "mae"))


def test_integers_among_queries_and_keys(tmp_path):
    name = "vit.encoder.layer.0.attention.attention.key.bias"
    tensors = theirs(WEIGHTS)
    with pytest.raises(ValueError, match=r"missing blocks.0.attn.qkv.bias"):
        crossmae.load(folder_of({**tensors, name: tensors[name].to(torch.int8)}, tmp_path / "mae"))


def test_against_the_client_itself(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {name: value for name, value in CONFIG.items() if name not in ("model_type", "architectures")}
    client = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**{**settings, "layer_norm_eps": 1e-3})).eval()
    for parameter in client.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    client.save_pretrained(tmp_path / "mae", max_shard_size="20KB")
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    model, messages = heard(tmp_path / "mae")
    with torch.no_grad():
        theirs_, ours = client(images, noise=noise), model(images, noise=noise)
    torch.testing.assert_close(ours.loss, theirs_.loss)
    predicted = theirs_.logits[theirs_.mask.bool()].view_as(ours.prediction)
    torch.testing.assert_close(ours.prediction, predicted, rtol=0, atol=1e-5)
    assert not messages
