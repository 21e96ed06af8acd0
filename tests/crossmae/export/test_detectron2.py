"""A stand-in for the backbone of detectron2, which is on no index of packages, takes what is exported."""

import pytest
import torch
from exports import KINDS, images_for, model_of, weights_of
from vitdet import ViT

import crossmae


@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
@pytest.mark.parametrize(("kind", "class_tokens"), [*((kind, 1) for kind in KINDS), ("mixing", 0), ("mixing", 8)])
def test_features_are_those_of_the_blocks(kind, class_tokens, size, tmp_path):
    model = model_of(kind, norm_eps=1e-4, class_tokens=class_tokens)
    exported = crossmae.export(model, "detectron2")
    exported.save(tmp_path / "backbone.pth")
    states = torch.load(tmp_path / "backbone.pth")["model"]
    client = ViT(**exported.config).eval()
    client.load_state_dict({name.removeprefix("backbone.net."): tensor for name, tensor in states.items()})
    assert all(name.startswith("backbone.net.") for name in states)
    # Bit for bit the encoder's, but for what there is no place for.
    left_out = {"cls_token"} | ({"norm.weight", "norm.bias"} if kind != "mixing" else set())
    expected = {name: tensor for name, tensor in weights_of(model).items() if name not in left_out}
    if class_tokens != 1:
        expected["pos_embed"] = expected["pos_embed"][:, class_tokens:]
    assert exported.state.keys() == expected.keys()
    assert all(torch.equal(tensor, exported.state[name]) for name, tensor in expected.items())
    assert any(all(name in note for name in left_out) for note in exported.notes)

    crossmae.save(model, tmp_path / "model.safetensors")
    resized = crossmae.load(tmp_path / "model.safetensors", image_size=size).eval()
    images = images_for(resized)
    with torch.no_grad():
        encoder = resized.encoder
        ids = torch.arange(resized.config.patches).expand(2, -1)
        x = encoder.patch_embed(images, ids, None, None) + encoder.positions[:, class_tokens:]
        for block in encoder.blocks:
            x = block(x)
        found = client(images).flatten(2).transpose(1, 2)
        torch.testing.assert_close(found, x, rtol=0, atol=2e-5)


def test_a_grid_that_is_no_square():
    with pytest.raises(ValueError, match=r"detectron2: it needs square images in pretraining, got \(24, 40\)$"):
        crossmae.export(model_of("mixing", image_size=(24, 40)), "detectron2")
