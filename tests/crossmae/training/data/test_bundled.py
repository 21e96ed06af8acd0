"""The bundled images."""

import numpy as np
import pytest
import torch
from PIL import Image

from crossmae.training.data.bundled import BUNDLED, CONTRAST, GREY, bundled_set
from crossmae.training.data.factory import find_sources
from crossmae.training.probe import LabelledFeatures, knn_accuracy


def test_digits():
    train, test = bundled_set("digits")
    assert train.images.shape == (1347, 1, 32, 32)
    assert test.images.shape == (450, 1, 32, 32)
    assert train.labels.bincount(minlength=10).min() > 120
    assert {tuple(i.flatten().tolist()) for i in train.images}.isdisjoint(
        tuple(i.flatten().tolist()) for i in test.images
    )
    images = bundled_set("digits")[0].images
    assert images.dtype == torch.uint8
    assert (images.min(), images.max()) == (0, 255)


def test_photographs():
    train, test = bundled_set("photographs")
    assert train.images.shape == (3800, 3, 32, 32)
    assert test.images.shape == (950, 3, 32, 32)
    assert train.labels.bincount().tolist() == [200] * 19
    assert test.labels.bincount().tolist() == [50] * 19
    crops = (train.images.float() - GREY) / CONTRAST
    half = 0.5 / CONTRAST  # of a step
    inside = ((train.images > 0) & (train.images < 255)).flatten(1).all(1)  # of which nothing was cut off
    assert 0.7 < inside.float().mean() < 1
    torch.testing.assert_close(
        crops[inside].mean((1, 2, 3)), torch.zeros(int(inside.sum())), rtol=0, atol=0.5 / CONTRAST
    )
    torch.testing.assert_close(crops[inside].std((1, 2, 3)), torch.ones(int(inside.sum())), rtol=0, atol=half)


def test_photographs_are_told_apart_by_pixels_as_well_as_facts_say():
    parts = (LabelledFeatures(part.images.flatten(1).float(), part.labels) for part in bundled_set("photographs"))
    accuracy = knn_accuracy(*parts)
    assert 0.38 < accuracy < 0.48


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_are_sources(name):
    found = find_sources(name)
    grey = found.training.load(3, 1, torch.float32)
    assert grey.shape == (1, 32, 32)
    assert 0 <= grey.min() < grey.max() <= 1
    assert found.training.load(3, 3, torch.uint8).shape == (3, 32, 32)
    assert found.evaluation.labelled
    assert len({found.evaluation.label(i) for i in range(len(found.evaluation))}) == len(found.evaluation.classes)
    assert find_sources("digits", "photographs").evaluation.classes[0] == "astronaut"


def test_a_name_that_is_also_a_folder_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "digits" / "0.png")
    for where in (("digits",), ("photographs", "digits")):
        with pytest.raises(ValueError, match=r"'digits' is a bundled set and a folder here; .*\./digits"):
            find_sources(*where)
    assert len(find_sources("./digits").training) == 1
    (tmp_path / "digits" / "recipe.json").write_text("{}")  # the folder of a run: `--data.source digits --out digits`
    assert len(find_sources("digits").training) == 1347
