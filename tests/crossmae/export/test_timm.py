"""timm opens what is exported, and what it saves is loaded again."""

import pytest
import torch
from checkpoint_files import heard, saved
from exports import KINDS, assert_features, assert_same_encoder, images_for, model_of

import crossmae

timm = pytest.importorskip("timm")


def opened(folder, **options):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


# As birder's: the last map is normed before mixing, and class tokens have positions, which are learned.
BIRDER = {"final_norm": True, "no_embed_class": False, "pos_embed": "learn"}


@pytest.mark.parametrize(("kind", "fields"), [*((kind, {}) for kind in KINDS), ("mixing", BIRDER)])
def test_features_and_the_way_back(kind, fields, tmp_path):
    model = model_of(kind, **fields)
    crossmae.export(model, "timm").save(tmp_path / "timm")
    client = opened(tmp_path / "timm")
    images = images_for(model)
    with torch.no_grad():
        assert_features(client.forward_features(images), model, images)
    timm.models.save_for_hf(client, tmp_path / "theirs", safe_serialization=True)
    for path in (tmp_path / "timm", tmp_path / "theirs", saved(client.state_dict(), tmp_path / "theirs.pth")):
        assert_same_encoder(model, heard(path, num_heads=3, img_size=32)[0])


def test_images_of_another_shape_and_other_settings(tmp_path):
    statistics = {"pixel_mean": (0.25,), "pixel_std": (0.5,)}
    model = model_of("mixing", image_size=(24, 40), channels=1, encoder_heads=6, mlp_ratio=2.5, **statistics)
    exported = crossmae.export(model, "timm")
    exported.save(tmp_path / "timm")
    client, images = opened(tmp_path / "timm"), images_for(model)
    with torch.no_grad():
        assert_features(client.forward_features(images), model, images)
    settings = timm.data.resolve_model_data_config(client)
    assert (settings["input_size"], settings["mean"], settings["std"]) == ((1, 24, 40), [0.25], [0.5])
    assert any("mean (0.25,) and standard deviation (0.5,)" in note for note in exported.notes)


def test_statistics_of_values_are_none_of_shares():
    statistics = {"pixel_mean": (900.0,), "pixel_std": (300.0,), "pixel_numbers": "values"}
    exported = crossmae.export(model_of("MAE", channels=1, **statistics), "timm")
    assert not {"mean", "std"} & exported.config["pretrained_cfg"].keys()
    assert exported.notes[0].startswith("images are raw values, normalised with mean (900.0,)")
    assert exported.notes[0].endswith("timm assumes ImageNet's statistics")


@pytest.mark.parametrize("kind", ["mixing", "MAE"])
def test_pooling_puts_no_untrained_norm_anywhere(kind, tmp_path):
    model = model_of(kind)
    crossmae.export(model, "timm").save(tmp_path / "timm")
    client, images = opened(tmp_path / "timm", global_pool="avg", num_classes=5), images_for(model)
    with torch.no_grad():
        pooled = client.forward_head(client.forward_features(images), pre_logits=True)
        torch.testing.assert_close(pooled, model.encode(images)[:, 1:].mean(1), rtol=0, atol=1e-5)


def test_another_image_size_is_resized_here(tmp_path):
    model = model_of("mixing")
    crossmae.save(model, tmp_path / "model.safetensors")
    larger = crossmae.load(tmp_path / "model.safetensors", image_size=64).eval()
    crossmae.export(larger, "timm").save(tmp_path / "timm")
    images = images_for(larger)
    with torch.no_grad():
        assert_features(opened(tmp_path / "timm").forward_features(images), larger, images)
        crossmae.export(model, "timm").save(tmp_path / "small")
        theirs = opened(tmp_path / "small", img_size=64).forward_features(images)
        assert float((theirs - larger.encode(images)).abs().max()) > 1e-3  # what the note is for
    assert any("antialiasing" in note for note in crossmae.export(model, "timm").notes)


def test_an_epsilon_of_its_own(tmp_path):
    model = model_of("MAE", norm_eps=1e-3)
    exported = crossmae.export(model, "timm")
    client = timm.models.VisionTransformer(**exported.config["model_args"]).eval()
    client.load_state_dict(exported.state)
    images = images_for(model)
    with torch.no_grad():
        assert_features(client.forward_features(images), model, images)
    with pytest.raises(
        ValueError, match=r"timm's config.json cannot hold functools.partial\(.*LayerNorm'>, eps=0.001\)"
    ):
        exported.save(tmp_path / "timm")
    assert not list(tmp_path.iterdir())
