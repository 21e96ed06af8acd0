"""Labelled images and statistics of pixels."""

import numpy as np
import pytest
import torch
from pictures import encoded, npy, random_pixels

from crossmae.training.data.config import DataConfig
from crossmae.training.data.factory import open_images
from crossmae.training.data.statistics import survey
from crossmae.training.evaluation import evaluation_loader, labelled


def write(folder, count, classes="abc", **shape):
    for number in range(count):
        place = folder / classes[number % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03}.png").write_bytes(encoded(random_pixels(number, 12, 10, 3), "PNG"))


def opened(folder, **options):
    return open_images(DataConfig(str(folder), **options), 3, (8, 8), mask_noise=4)


def everything(subset):
    batches = list(evaluation_loader(subset, batch_size=7, workers=0))
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


def test_held_out_images_with_labels(tmp_path):
    write(tmp_path / "train", 30)
    write(tmp_path / "val", 12, "cb")
    dataset = opened(tmp_path)
    sets = labelled(dataset, limit=15)
    images, labels = everything(sets.training)
    assert images.shape == (15, 3, 8, 8)
    assert labels.bincount().tolist() == [5, 5, 5]
    test_images, test_labels = everything(sets.test)
    assert test_labels.tolist() == [1] * 6 + [2] * 6  # numbered as in training, in the order of paths
    again = everything(labelled(dataset, limit=15).test)
    assert torch.equal(again[0], test_images)
    assert len(labelled(dataset, limit=100).training) == 30


def test_without_held_out_images_training_images_are_parted(tmp_path):
    write(tmp_path, 31)
    sets = labelled(opened(tmp_path), limit=10)
    assert (len(sets.training), len(sets.test)) == (10, 10)
    assert set(sets.training.indices).isdisjoint(sets.test.indices)
    assert set(everything(sets.training)[1].tolist()) == set(everything(sets.test)[1].tolist()) == {0, 1, 2}


def test_without_labels_there_is_nothing_to_evaluate_on(tmp_path):
    write(tmp_path, 5, "a")
    assert labelled(opened(tmp_path), limit=10) is None


def test_bundled_sets_are_evaluated_as_they_are():
    dataset = open_images(DataConfig("digits"), 1, (32, 32), mask_noise=4)
    sets = labelled(dataset, limit=2000)
    images, labels = everything(sets.test)
    assert torch.equal(images, dataset.evaluation.source.images)
    assert torch.equal(labels, dataset.evaluation.source.labels)


def test_statistics_are_those_of_float64(tmp_path):
    write(tmp_path, 9)
    dataset = open_images(DataConfig(str(tmp_path)), 3, (12, 10), mask_noise=4)  # the size they have
    pixels = np.stack([random_pixels(number, 12, 10, 3) for number in range(9)]) / 255
    seen = survey(dataset.images)
    np.testing.assert_allclose(seen.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(seen.std, pixels.std((0, 1, 2)), rtol=1e-12)
    # Sorted by class, a third of them is the first of each.
    few = pixels[[0, 1, 2]]
    np.testing.assert_allclose(survey(dataset.images, 3).mean, few.mean((0, 1, 2)), rtol=1e-12)


def test_statistics_of_floats_and_of_a_constant_channel(tmp_path):
    values = np.random.default_rng(0).normal(1000, 3, (4, 2, 8, 8)).astype(np.float32)
    values[:, 1] = 7.3
    for number, array in enumerate(values):
        (tmp_path / f"{number}.npy").write_bytes(npy(array))
    dataset = open_images(DataConfig(str(tmp_path), dtype="float32"), 2, (8, 8), mask_noise=4)
    mean, std = dataset.data.mean, dataset.data.std
    exact = values.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 2, 3)), rtol=1e-7)
    assert std[0] == pytest.approx(exact[:, 0].std(), rel=1e-6)
    assert std[1] == 1.0
