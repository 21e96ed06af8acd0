"""Runs that start from the encoder of a checkpoint."""

import json

import pytest
import torch
from exports import weights_of
from pretraining import into, small

import crossmae
from crossmae.commands.cli import main
from crossmae.training.run import pretrain
from crossmae.training.run_state import MANIFEST


@pytest.fixture
def vit(tmp_path):
    """A vision transformer of the small recipe's size with a final norm and positions that were learned."""
    source = crossmae.MaskedAutoencoder(small(model="mae_vit_tiny_patch4").config())
    torch.nn.init.normal_(source.encoder.positions, std=0.2)
    torch.save(weights_of(source), tmp_path / "vit.pth")
    return tmp_path / "vit.pth", source


def test_a_run_starts_from_an_encoder_and_resumes_without_it(vit, tmp_path, capsys):
    path, source = vit
    recipe = small(steps=2, init=str(path))
    pretrain(recipe, into(tmp_path / "run", save_every=1e-9, keep_every=1e-9))
    printed = capsys.readouterr().out
    assert f"starts from {path}: left out, as the model has no final norm: norm.weight, norm.bias" in printed
    first = tmp_path / "run" / "checkpoints" / "step-00000000"
    begun = crossmae.load(first / "model.safetensors")
    source.encoder.norm = torch.nn.Identity()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(begun.encode(images), source.encode(images))
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["init"] == str(path)

    path.unlink()
    pretrain(small(steps=4, init=str(path)), into(tmp_path / "run"))
    assert "Resuming from" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="there is no checkpoint file"):
        pretrain(recipe, into(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"holds a run with other settings: init .*vit.pth\", here null"):
        pretrain(small(steps=5), into(tmp_path / "run"))


def test_refusals_come_before_images_are_looked_for(vit, tmp_path, capsys):
    path, _ = vit
    words = [
        "pretrain",
        "--model",
        "crossmae_vit_tiny_patch4",
        "--data.source",
        str(tmp_path / "no"),
        "--init",
        str(path),
    ]
    out = ["--out", str(tmp_path / "run")]
    begun = tmp_path / "step-00000001"
    begun.mkdir()
    (begun / MANIFEST).touch()
    for more, message in (
        (
            [],
            "fit the model's encoder (encoder_depth 2, here 4, channels 1, here 3): missing blocks.2.norm1.weight",
        ),
        (["--resume", str(begun)], "both say what to start from; pass only one"),
    ):
        assert main([*words, *out, *more]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells(vit, capsys):
    path, _ = vit
    words = ["pretrain", "--dry_run", "--model", "crossmae_vit_tiny_patch4", "--batch_size", "64", "--micro_batch", "8"]
    words += ["--model_options.channels", "1", "--model_options.encoder_depth", "2", "--init", str(path)]
    assert main(words) == 0
    assert f"starts from {path}: left out" in capsys.readouterr().out
