"""torchvision takes what is exported, and what it saves is loaded again."""

import pytest
import torch
from checkpoint_files import heard, saved
from exports import KINDS, assert_features, assert_same_encoder, images_for, model_of

import crossmae

vision_transformer = pytest.importorskip("torchvision").models.VisionTransformer


def built(exported):
    client = vision_transformer(**exported.config).eval()
    client.heads = torch.nn.Identity()
    if any("encoder.ln = torch.nn.Identity()" in note for note in exported.notes):
        client.encoder.ln = torch.nn.Identity()
    return client


def tokens(client, images):
    """All tokens, where their forward hands on the class token alone."""
    patches = client._process_input(images)
    return client.encoder(torch.cat([client.class_token.expand(len(images), -1, -1), patches], 1))


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_the_way_back(kind, tmp_path):
    model = model_of(kind, norm_eps=1e-6 if kind == "mixing" else 1e-4, mlp_ratio=2.0)
    exported = crossmae.export(model, "torchvision")
    exported.save(tmp_path / "ours.pth")
    client, images = built(exported), images_for(model)
    client.load_state_dict(torch.load(tmp_path / "ours.pth"))
    with torch.no_grad():
        assert_features(tokens(client, images), model, images)
        assert torch.equal(client(images), tokens(client, images)[:, 0])
    assert any("eps=0.0001" in note for note in exported.notes) == (kind != "mixing")
    for path in (tmp_path / "ours.pth", saved(client.state_dict(), tmp_path / "theirs.pth")):
        told = {"num_heads": 3, "img_size": 32, "norm_eps": model.config.norm_eps}
        assert_same_encoder(model, heard(path, **told)[0])


def test_what_it_cannot_express():
    with pytest.raises(
        ValueError, match=r"torchvision: it needs square images, got \(24, 40\); .* it needs 3 channels, got 1$"
    ):
        crossmae.export(model_of("MAE", image_size=(24, 40), channels=1), "torchvision")
