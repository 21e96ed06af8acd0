"""``crossmae probe``."""

import json

import pytest
from pictures import encoded, random_pixels

import crossmae
from crossmae.commands.cli import main
from crossmae.training.data import bundled
from crossmae.training.data.config import DataConfig
from crossmae.training.data.factory import open_images
from crossmae.training.evaluation import evaluation_loader
from crossmae.training.probe import accuracies, encoder_features

SMALL = {"channels": 1, "encoder_depth": 1, "encoder_width": 24, "decoder_depth": 1}
STATISTICS = {"pixel_mean": (0.3,), "pixel_std": (0.35,)}


@pytest.fixture
def few_digits(monkeypatch):
    few = tuple(
        bundled.ImagesInMemory(part.images[:count], part.labels[:count], part.classes)
        for part, count in zip(bundled._digits(), (120, 40), strict=True)
    )
    monkeypatch.setattr(bundled, "_digits", lambda: few)


@pytest.fixture
def checkpoints(tmp_path):
    for family in ("crossmae", "mae"):
        crossmae.save(crossmae.create_model(f"{family}_vit_tiny_patch4", **SMALL, **STATISTICS), tmp_path / family)
    return [str(tmp_path / family) for family in ("crossmae", "mae")]


@pytest.mark.usefixtures("few_digits")
def test_checkpoints_side_by_side(tmp_path, checkpoints, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["probe", *checkpoints, "--source", "digits", "--workers", "0", "--out", str(out), "--epochs", "120"]
    assert main([*words, "--attentive"]) == 0
    text = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())["results"]
    assert [result["checkpoint"] for result in results] == checkpoints
    for result in results:
        assert f"| {result['kNN']:.1%} " in text
        assert result["attentive"] <= result["attentive, top 5"] <= 1
    for family in ("crossmae", "mae"):
        for how in ("knn", "linear", "attentive"):
            (picture,) = out.glob(f"confusion-*_{family}-{how}.png")
            assert picture.read_bytes().startswith(b"\x89PNG")

    images = open_images(DataConfig("digits", mean=(0.3,), std=(0.35,), workers=0), 1, (32, 32), 0)
    parts = [
        encoder_features(crossmae.load(checkpoints[0]), evaluation_loader(part, 32, 0))
        for part in (images.images, images.evaluation)
    ]
    expected = accuracies(*parts)
    assert results[0]["kNN"] == pytest.approx(expected["knn"])
    assert results[0]["linear"] > 0.3  # of ten classes, after a few steps

    monkeypatch.setattr("crossmae.commands.probe.encoder_features", None)  # all features are there
    assert main(words) == 0
    again = json.loads((out / "results.json").read_text())["results"]
    assert [r["linear"] for r in again] == [r["linear"] for r in results]


@pytest.mark.usefixtures("few_digits")
def test_what_cannot_be_probed_is_refused_before_work(tmp_path, checkpoints, capsys):
    def refused(*words):
        assert main(["probe", *words, "--out", str(tmp_path / "out"), "--workers", "0"]) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "there is no checkpoint file" in refused(checkpoints[0], str(tmp_path / "missing"), "--source", "digits")
    assert "'nowhere' does not exist" in refused(*checkpoints, "--source", "nowhere")
    assert "data.mean is (0.9,), but the encoder was trained with (0.3,)" in refused(
        checkpoints[0], "--source", "digits", "--mean", "[0.9]", "--std", "[0.35]"
    )
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded(random_pixels(number, 40, 40), "PNG"))
    assert "the images have no labels" in refused(checkpoints[0], "--source", str(tmp_path))
