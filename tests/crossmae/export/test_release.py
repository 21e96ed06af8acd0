"""The releases' layout, encoder and decoder."""

import pytest
import torch
from checkpoint_files import heard
from exports import images_for, model_of
from releases import MAE, CrossMAE

import crossmae

MAPS = [(0, 2, 3), (3,), (0,), (0, 1, 2, 3), (1, 2, 3)]


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("attends", [False, True])
def test_a_crossmae_and_the_way_back(maps, attends, tmp_path):
    model = model_of("mixing", feature_maps=maps, decoder_self_attention=attends)
    exported = crossmae.export(model, "release")
    exported.save(tmp_path / "release.pth")
    client = CrossMAE(**exported.config)
    client.load_state_dict(exported.state)
    images = images_for(model)
    torch.manual_seed(1)
    with torch.no_grad():
        loss, _, _, mask = client(images, 0.75, 0.25, vis=True)
    torch.manual_seed(1)
    ours = model(images, 0.75, 0.25, rounding="release")
    torch.testing.assert_close(ours.loss.detach(), loss)
    assert torch.equal(mask.nonzero()[:, 1].view_as(ours.masking.predicted_ids), ours.masking.predicted_ids)
    _returns(model, exported, tmp_path / "release.pth")


def test_a_mae_and_the_way_back(tmp_path):
    model = model_of("MAE", normalize_targets=False)
    exported = crossmae.export(model, "release")
    exported.save(tmp_path / "release.pth")
    client = MAE(**exported.config)
    client.load_state_dict(exported.state)
    images = images_for(model)
    torch.manual_seed(1)
    with torch.no_grad():
        loss = client(images)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(model(images, rounding="release").loss.detach(), loss)
    _returns(model, exported, tmp_path / "release.pth")


def _returns(model, exported, path):
    """By their arguments and by the file alone, bit for bit; the grid of these positions no tensor tells."""
    for loaded in (crossmae.from_release(exported.state, **exported.config), heard(path)[0]):
        assert loaded.config == model.config
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_an_encoder_alone(tmp_path):
    model = model_of("alone")
    exported = crossmae.export(model, "release")
    exported.save(tmp_path / "encoder.pth")
    loaded, _ = heard(tmp_path / "encoder.pth")
    assert loaded.config == crossmae.Config(**{**vars(model.config), **_unused(loaded)})
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def _unused(loaded):
    return {name: value for name, value in vars(loaded.config).items() if name.startswith(("decoder", "normalize"))}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("one map", {}, "CrossMAE's release cannot run a decoder without inter-block attention"),
        ("MAE", {"norm_eps": 1e-5}, r"its LayerNorms need eps 1e-06, got \[1e-05\]"),
        ("mixing", {"decoder_norm_eps": 1e-5}, r"its LayerNorms need eps 1e-06, got \[1e-06, 1e-05\]"),
        ("mixing", {"class_tokens": 8}, "it needs one class token, got 8"),
        ("mixing", {"no_embed_class": False}, "it has no no_embed_class=False"),
        ("mixing", {"final_norm": True}, "it has no final_norm=True"),
        ("mixing", {"last_mix_norm": False}, "it has no last_mix_norm=False"),
        ("MAE", {"decoder_class_token": False}, "it has no decoder_class_token=False"),
        ("MAE", {"pixel_order": "chw"}, "it has no pixel_order='chw'"),
        ("MAE", {"patch_size": (8, 16)}, r"it needs square patches, got \(8, 16\)"),
        ("MAE", {"image_size": (24, 40)}, r"it needs square images, got \(24, 40\)"),
    ],
)
def test_what_it_cannot_express(kind, fields, message):
    with pytest.raises(ValueError, match=f"this model cannot be exported to the release: {message}"):
        crossmae.export(model_of(kind, **fields), "release")
