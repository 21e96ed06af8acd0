"""torchvision's vision transformer, and files in its layout."""

import pytest
import torch
from checkpoint_files import encoder_of, heard, saved
from golden_cases import Case
from plain_vit import features

import crossmae
from crossmae.checkpoint.torchvision import NAMES

WEIGHTS = encoder_of(Case("mae").weights)
TOLD = {"num_heads": 3, "norm_eps": 1e-6}
IMAGES = torch.randn(2, 3, 32, 32)


def theirs():
    return {NAMES.written(name): tensor for name, tensor in WEIGHTS.items()}


def test_names_are_read_as_they_are_written(tmp_path):
    model, messages = heard(
        saved({"model": {f"module.{n}": t for n, t in theirs().items()}}, tmp_path / "a.pth"), **TOLD
    )
    assert not messages
    with torch.no_grad():
        torch.testing.assert_close(model.encode(IMAGES).double(), features(WEIGHTS, IMAGES, 3), rtol=0, atol=1e-5)


def test_files_that_were_published_before(tmp_path):
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for name, t in theirs().items()
    }
    assert sum("linear_" in name for name in old) == 12
    model, _ = heard(saved(old, tmp_path / "old.pth"), **TOLD)
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in crossmae.to_release(model.state_dict()).items())


def test_against_the_client_itself(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    client = torchvision.models.VisionTransformer(32, 8, 3, 3, 24, 96, num_classes=5).eval()
    for parameter in client.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model, messages = heard(saved(client.state_dict(), tmp_path / "vit.pth"), num_heads=3)
    assert "left out, as part of a task's head: heads.head.bias, heads.head.weight" in messages[0]
    client.heads = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(model.encode(IMAGES)[:, 0], client(IMAGES), rtol=0, atol=1e-5)


def test_a_stem_of_convolutions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not fit the model: unexpected conv_bn"):
        heard(saved({**theirs(), "conv_bn_relu_0.0.weight": torch.ones(24, 3, 3, 3)}, tmp_path / "stem.pth"), **TOLD)
