"""Models that start from the encoder of a checkpoint."""

import json
import warnings

import pytest
import torch
from checkpoint_files import encoder_of, saved
from golden_cases import Case
from plain_vit import features
from safetensors.torch import save_file

import crossmae
from crossmae.checkpoint import huggingface
from crossmae.model.config import Config
from crossmae.model.positions import interpolate_positions

# A vision transformer with positions of its own, for the class token too.
VIT = encoder_of(Case("mae").weights)
VIT["pos_embed"] = torch.randn(1, 17, 24, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 32, 32)
ENCODER = {"image_size": (32, 32), "patch_size": 8, "encoder_width": 24, "encoder_depth": 3, "encoder_heads": 3}
DECODER = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
MIXING, ONE_MAP, MAE = {"feature_maps": (0, 2, 3)}, {}, {"decoder": "mae"}


def model_of(**fields):
    return crossmae.MaskedAutoencoder(Config(**{**ENCODER, **DECODER, **fields}))


def started(path, **fields):
    """A model that started from a checkpoint, and what was said."""
    model = model_of(**fields)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", crossmae.CheckpointWarning)
        crossmae.load_encoder(model, path)
    return model, [str(warning.message) for warning in caught]


def close(model, weights, images=IMAGES, eps=1e-6):
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images).double(), features(weights, images, 3, eps), rtol=0, atol=1e-5)
    return True


@pytest.mark.parametrize(("fields", "norm"), [(MIXING, False), (ONE_MAP, True), (MAE, True)])
def test_features_are_those_of_the_checkpoint(fields, norm, tmp_path):
    head = {"head.weight": torch.ones(5, 24)}
    model, said = started(saved({"state_dict": {**VIT, **head}}, tmp_path / "vit.pth"), **fields)
    assert close(model, {name: tensor for name, tensor in VIT.items() if norm or not name.startswith("norm.")})
    assert len(said) == 1
    assert "left out, as part of a task's head: head.weight" in said[0]
    assert ("as the model has no final norm: norm.bias, norm.weight" in said[0]) == (not norm)
    assert "not in the file, so taken from the model: encoder_heads=3, norm_eps=1e-06" in said[0]
    assert "not in the file, so assumed: image_size=(32, 32)" in said[0]
    model(IMAGES, generator=torch.Generator().manual_seed(0)).loss.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.encoder.parameters())


def test_the_decoder_and_a_norm_that_is_not_told_stay(tmp_path):
    without = {name: tensor for name, tensor in VIT.items() if not name.startswith("norm.")}
    model = model_of().double()
    torch.nn.init.normal_(model.encoder.norm.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(crossmae.CheckpointWarning, match="no final norm, so the model's is kept"):
        crossmae.load_encoder(model, saved(without, tmp_path / "vit.pth"))
    after = model.state_dict()
    kept = {name for name in after if name.startswith(("decoder.", "encoder.norm."))}
    assert {name for name in after if torch.equal(after[name], before[name])} == kept
    assert {tensor.dtype for tensor in after.values()} == {torch.float64}


def test_a_class_token_that_had_no_position_gets_none(tmp_path):
    case = Case("crossmae_interblock_input")
    source = crossmae.from_release(case.weights, **case.arguments)
    source.encoder.positions[:, 0] = 1.0  # a row that CrossMAE does not look at
    expected = source.encode(case.images).detach()
    config = source.config
    fields = {"image_size": config.image_size, "patch_size": config.patch_size, "channels": config.channels}
    encoder = {name: getattr(config, name) for name in ("encoder_width", "encoder_depth", "encoder_heads", "mlp_ratio")}
    released = saved({"model": crossmae.to_release(source.state_dict())}, tmp_path / "release.pth")
    crossmae.save(source, tmp_path / "ours.safetensors")
    for path in (released, tmp_path / "ours.safetensors"):
        model, _ = started(path, decoder="mae", **{**fields, **encoder})
        model.encoder.norm = torch.nn.Identity()
        torch.testing.assert_close(model.encode(case.images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fields", [MIXING, {**MAE, "patch_size": (8, 16)}, {**MIXING, "pos_embed": "learn"}])
def test_eight_class_tokens_and_other_patches(fields, tmp_path):
    source = model_of(class_tokens=8, **{**fields, "decoder": None})
    torch.nn.init.normal_(source.encoder.positions)
    crossmae.save(source, tmp_path / "pixio.safetensors")
    model, said = started(tmp_path / "pixio.safetensors", class_tokens=8, **fields)
    assert not said
    with torch.no_grad():
        assert torch.equal(model.encode(IMAGES), source.encode(IMAGES))
    with pytest.raises(
        ValueError, match=r"\(class_tokens 8, here 1\): cls_token must have shape \(1, 1, 24\), got \(1, 8, 24\)$"
    ):
        started(tmp_path / "pixio.safetensors", **fields)


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
def test_hugging_faces_folder_and_another_size(size, tmp_path):
    config = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    config |= {"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in huggingface.written(VIT).items()}, tmp_path / "model.safetensors")
    model, said = started(tmp_path, image_size=size, norm_eps=1e-3)
    weights = {**VIT, "pos_embed": interpolate_positions(VIT["pos_embed"], (4, 4), (size[0] // 8, size[1] // 8))}
    assert close(model, weights, torch.randn(2, 3, *size), eps=1e-3)
    assert [message.split(": ")[1] for message in said] == (
        [] if size == (32, 32) else ["position embeddings are interpolated from image size (32, 32) to (48, 40)"]
    )
    with pytest.raises(
        ValueError, match=r"norm_eps is 0.001 according to its config.json, but 1e-06 according to the model"
    ):
        started(tmp_path)
    with pytest.raises(
        ValueError, match=r"encoder_heads is 3 according to its config.json, but 4 according to the model"
    ):
        started(tmp_path, norm_eps=1e-3, encoder_heads=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"encoder_width": 48},
            r"encoder \(encoder_width 24, here 48\): blocks.0.attn.proj.bias must .* \(24,\); (.*; ){4}and 37 more$",
        ),
        (
            {"encoder_depth": 4},
            r"\(encoder_depth 3, here 4\): missing blocks.3.norm1.weight \(24,\); (.*; ){4}and 7 more$",
        ),
        (
            {"encoder_depth": 2},
            r"\(encoder_depth 3, here 2\): unexpected blocks.2.attn.proj.bias \(24,\); (.*; ){4}and 7 more$",
        ),
        (
            {"patch_size": 16},
            r"\(patch_size 8, here 16\): patch_embed.proj.weight must .* \(24, 3, 16, 16\), got \(24, 3, 8, 8\)$",
        ),
        (
            {"channels": 1},
            r"\(channels 3, here 1\): patch_embed.proj.weight must have shape \(24, 1, 8, 8\), got \(24, 3, 8, 8\)$",
        ),
        (
            {"mlp_ratio": 2.0},
            r"\(mlp_ratio 4.0, here 2.0\): .*blocks.0.mlp.fc1.weight must have shape \(48, 24\), got \(96, 24\)",
        ),
    ],
)
def test_another_model_is_refused_and_nothing_changes(fields, message, tmp_path):
    model = model_of(**fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        crossmae.load_encoder(model, saved(VIT, tmp_path / "vit.pth"))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": None}, r"does not fit the model's encoder: missing norm.bias \(24,\)$"),
        ({"reg_token": torch.ones(1, 4, 24)}, "besides the class token it has reg_token"),
        ({"blocks.0.ls1.gamma": torch.ones(24)}, "with layer scale: blocks.0.ls1.gamma"),
        ({"blocks.0.attn.q_norm.weight": torch.ones(8)}, "with query and key norms: blocks.0.attn.q_norm.weight"),
        (
            {"pos_embed": torch.randn(1, 16, 24)},
            "how its 15 patches are arranged .*16 position embeddings have no row for the class token",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused(change, message, tmp_path):
    weights = {name: tensor for name, tensor in {**VIT, **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        started(saved(weights, tmp_path / "vit.pth"))


def test_a_config_that_lies_about_the_grid(tmp_path):
    config = {"model_type": "vit", "num_attention_heads": 3, "image_size": 64, "patch_size": 8, "layer_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in huggingface.written(VIT).items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="has position embeddings for 16 patches, but 8 x 8 patches by its image size"):
        started(tmp_path)
