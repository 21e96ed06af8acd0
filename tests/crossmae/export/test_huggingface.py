"""Hugging Face's library opens what is exported, and what it saves is loaded again."""

import pytest
import torch
from checkpoint_files import heard
from exports import assert_features, assert_same_encoder, images_for, model_of

import crossmae

transformers = pytest.importorskip("transformers")


def opened(kind, folder, **options):
    """Their model, and the names of tensors that it made itself."""
    model, told = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    return model.eval(), set(told["missing_keys"])


@pytest.mark.parametrize("kind", ["mixing", "one map", "alone"])
def test_features_of_a_vit_and_the_way_back(kind, tmp_path):
    model = model_of(kind, norm_eps=1e-5)
    exported = crossmae.export(model, "hf")
    exported.save(tmp_path / "ours")
    client, missing = opened(transformers.ViTModel, tmp_path / "ours", add_pooling_layer=False)
    assert missing == ({"layernorm.weight", "layernorm.bias"} if kind == "mixing" else set())
    assert any("layernorm = torch.nn.Identity()" in note for note in exported.notes) == bool(missing)
    if missing:
        client.layernorm = torch.nn.Identity()
    images = images_for(model)
    with torch.no_grad():
        assert_features(client(images).last_hidden_state, model, images)
    client.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        assert_same_encoder(model, heard(tmp_path / folder)[0])


def test_a_whole_mae_and_the_way_back(tmp_path):
    model = model_of("MAE", normalize_targets=False)
    exported = crossmae.export(model, "hf")
    exported.save(tmp_path / "ours")
    client, missing = opened(transformers.ViTMAEForPreTraining, tmp_path / "ours")
    assert not missing
    images, noise = images_for(model), torch.rand(2, 16)
    with torch.no_grad():
        theirs, ours = client(images, noise=noise), model(images, noise=noise)
    torch.testing.assert_close(ours.loss, theirs.loss)
    predicted = theirs.logits[theirs.mask.bool()].view_as(ours.prediction)
    torch.testing.assert_close(ours.prediction, predicted, rtol=0, atol=1e-5)

    encoder = transformers.ViTMAEModel.from_pretrained(tmp_path / "ours", mask_ratio=0.0).eval()
    with torch.no_grad():
        in_order = encoder(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    assert_features(in_order, model, images)
    assert "noise=torch.arange(16.0).expand(batch, -1)" in exported.notes[1]

    client.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        loaded = crossmae.load(tmp_path / folder)
        assert loaded.config == model.config
        assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.state_dict().items())


@pytest.mark.parametrize("kind", ["one map", "MAE"])
def test_images_that_are_no_squares(kind, tmp_path):
    model = model_of(kind, image_size=(24, 40), channels=1)
    exported = crossmae.export(model, "hf")
    exported.save(tmp_path / "ours")
    client, _ = opened(transformers.ViTModel, tmp_path / "ours", add_pooling_layer=False)
    images = images_for(model)
    with torch.no_grad():
        assert_features(client(images).last_hidden_state, model, images)
    why = "ViTMAE does not support image_size=(24, 40)" if kind == "MAE" else "ViTModel has none"
    assert f"the decoder is left out: {why}" in exported.notes
    assert any("correctly only for square images" in note for note in exported.notes)
    assert_same_encoder(model, heard(tmp_path / "ours")[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pixel_order", "chw"),
        ("decoder_class_token", False),
        ("decoder_norm_eps", 1e-5),
        ("final_norm", False),
        ("patch_size", (8, 16)),
    ],
)
def test_a_mae_that_vitmae_cannot_express_is_an_encoder(field, value):
    exported = crossmae.export(model_of("MAE", **{field: value}), "hf")
    assert exported.config["model_type"] == "vit"
    assert f"the decoder is left out: ViTMAE does not support {field}={value!r}" in exported.notes


def test_patches_that_are_no_squares_and_learned_positions(tmp_path):
    model = model_of("MAE", patch_size=(8, 16), pos_embed="learn", no_embed_class=True)
    crossmae.export(model, "hf").save(tmp_path / "ours")
    client, missing = opened(transformers.ViTModel, tmp_path / "ours", add_pooling_layer=False)
    assert not missing
    images = images_for(model)
    with torch.no_grad():
        assert_features(client(images).last_hidden_state, model, images)


def test_another_image_size_at_call_time(tmp_path):
    model = model_of("one map")
    crossmae.export(model, "hf").save(tmp_path / "ours")
    crossmae.save(model, tmp_path / "model.safetensors")
    larger = crossmae.load(tmp_path / "model.safetensors", image_size=(48, 64)).eval()
    client, _ = opened(transformers.ViTModel, tmp_path / "ours", add_pooling_layer=False)
    images = images_for(larger)
    with torch.no_grad():
        assert_features(client(images, interpolate_pos_encoding=True).last_hidden_state, larger, images)
