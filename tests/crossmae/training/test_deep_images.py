"""Runs on images that 8 bits cannot hold, from their files to a model and what it makes of them."""

import json

import numpy as np
import pytest
import torch
from pictures import tiff

import crossmae
from crossmae.commands.cli import main
from crossmae.model import MaskedAutoencoder
from crossmae.training.pretraining import PretrainingLoss

BANDS, IMAGES = 10, 12


def folder_of(path, dtype=np.uint16, hole=None, form=None):
    """Scenes of ten bands, 0 to 4,000, of which a side may be missing."""
    path.mkdir()
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 4001, (IMAGES, BANDS, 32, 32)).astype(dtype)
    if hole is not None:
        scenes[:, :, :, :6] = hole
    for number, scene in enumerate(scenes):
        content = tiff(scene, photometric="minisblack", planarconfig="separate")
        (path / f"{number:02}.tif").write_bytes(content)
    return scenes


def words(source, out, *more):
    """A short run on the command line."""
    options = {"channels": BANDS, "encoder_depth": 1, "decoder_depth": 1}
    return [
        *("pretrain", "--model", "crossmae_vit_tiny_patch4", "--model_options", json.dumps(options)),
        *("--data.source", str(source), "--out", str(out), "--data.crop_scale", "null", "--data.flip", "false"),
        *("--data.workers", "0", "--batch_size", "6", "--steps", "2", "--precision", "float32", *more),
    ]


@pytest.fixture
def seen(monkeypatch):
    """Images that reach the model in training, and what it makes of images before it takes them."""
    images, normalized = [], []
    forward, normalize = PretrainingLoss.forward, MaskedAutoencoder.normalized

    def noted(module, batch, *arguments):
        images.append(batch.clone())
        return forward(module, batch, *arguments)

    def noting(model, batch):
        normalized.append(normalize(model, batch))
        return normalized[-1]

    monkeypatch.setattr(PretrainingLoss, "forward", noted)
    monkeypatch.setattr(MaskedAutoencoder, "normalized", noting)
    return images, normalized


def test_ten_bands_of_12_bits_reach_the_model_whole(tmp_path, seen, capsys):
    scenes = folder_of(tmp_path / "scenes")
    run, picture = tmp_path / "run", tmp_path / "picture.png"
    assert main(words(tmp_path / "scenes", run, "--dry-run")) == 0
    assert "uint16 from 0 to 4,000 as shares of full scale, in float32" in capsys.readouterr().out
    assert main(words(tmp_path / "scenes", run)) == 0
    images = torch.cat(seen[0])
    assert images.shape == scenes.shape
    assert images.unique().numel() == len(np.unique(scenes)) > 3900
    normalized = torch.cat(seen[1][:2])
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(BANDS), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalized.std((0, 2, 3), correction=0), torch.ones(BANDS), rtol=1e-4, atol=0)
    config = crossmae.load(run / "model.safetensors").config
    assert (config.pixel_numbers, config.pixel_nodata) == ("shares", None)

    assert main(words(tmp_path / "scenes", run, "--steps", "3")) == 0  # goes on, and so does what it wrote down
    assert main(["pretrain", "--recipe", str(run / "recipe.json"), "--out", str(run), "--steps", "4"]) == 0
    capsys.readouterr()
    assert main(words(tmp_path / "scenes", run, "--data.nodata", "-9999", "--steps", "4")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "holds a run with other settings: data.nodata null, here -9999.0; to start from it, use another folder" in line
    )

    first = str(tmp_path / "scenes" / "00.tif")
    assert main(["reconstruct", first, "--checkpoint", str(run), "--out", str(picture)]) == 0
    exact = scenes[0] / 65535 - np.array(config.pixel_mean)[:, None, None]
    exact /= np.array(config.pixel_std)[:, None, None]
    np.testing.assert_allclose(seen[1][-1][0], exact, rtol=0, atol=1e-4)
    folder_of(tmp_path / "signed", np.int16)
    assert main(["reconstruct", str(tmp_path / "signed" / "00.tif"), "--checkpoint", str(run)]) == 1
    assert "it holds int16, which has no full scale" in capsys.readouterr().err


@pytest.mark.parametrize(("hole", "dtype", "setting"), [(-9999, np.int16, "-9999"), (np.nan, np.float32, "nan")])
def test_no_data_is_named_or_refused_in_one_line(tmp_path, seen, capsys, hole, dtype, setting):
    scenes = folder_of(tmp_path / "scenes", dtype, hole)
    run = tmp_path / "run"
    assert main(words(tmp_path / "scenes", run)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"data.nodata={setting}" in line
    assert not run.exists()

    assert main(words(tmp_path / "scenes", run, "--data.nodata", setting)) == 0
    images, normalized = torch.cat(seen[0]), torch.cat(seen[1][:2])
    assert images[..., 6:].min() == scenes[..., 6:].min()
    assert normalized[..., :6].abs().max() < 1e-5  # the mean
    assert normalized[..., 6:].abs().max() > 1
    assert json.loads((run / "recipe.json").read_text())["data"]["nodata"] == (
        "nan" if setting == "nan" else float(setting)
    )
    assert main(words(tmp_path / "scenes", run, "--data.nodata", setting, "--steps", "3")) == 0
    picture = ["--checkpoint", str(run), "--out", str(tmp_path / "picture.png")]
    assert main(["reconstruct", str(tmp_path / "scenes" / "00.tif"), *picture]) == 0
    assert seen[1][-1][..., :6].abs().max() < 1e-5


def test_settings_are_shown(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = capsys.readouterr().out
    assert all(f"--data.{name}" in text for name in ("dtype {auto,uint8,float32}", "numbers", "nodata"))
