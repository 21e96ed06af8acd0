"""Features on disk are found as long as nothing that they were made of has changed."""

import pytest
import torch
from pictures import encoded, random_pixels

from crossmae.training.data.bundled import ImagesInMemory
from crossmae.training.data.folders import image_files
from crossmae.training.feature_cache import FeatureCache
from crossmae.training.probe import LabelledFeatures

MADE = LabelledFeatures(torch.randn(5, 3), torch.arange(5))


@pytest.fixture
def cached(tmp_path):
    """A function that says whether features had to be made."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for number in range(4):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(random_pixels(number, 9, 9, 3), "PNG"))

    def made(source=None, **settings):
        calls = []
        source = source or image_files(tmp_path / "images")
        found = FeatureCache(tmp_path / "cache").features(
            str(tmp_path), source, settings, lambda: calls.append(None) or MADE
        )
        assert torch.equal(found.values, MADE.values)
        assert torch.equal(found.labels, MADE.labels)
        return bool(calls)

    return made


def test_what_changes_makes_them_anew(cached, tmp_path):
    assert [cached(), cached()] == [True, False]
    assert [cached(pooling="class"), cached(pooling="class"), cached()] == [True, False, False]
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert [cached(), cached()] == [True, False]
    (tmp_path / "images" / "a" / "0.png").write_bytes(encoded(random_pixels(7, 12, 9, 3), "PNG"))
    assert [cached(), cached()] == [True, False]
    (tmp_path / "images" / "a" / "2.png").rename(tmp_path / "images" / "b" / "2.png")
    assert [cached(), cached()] == [True, False]


def test_images_in_memory_are_known_by_their_pixels(cached):
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.arange(3)
    assert [cached(ImagesInMemory(images, labels, ())), cached(ImagesInMemory(images.clone(), labels, ()))] == [
        True,
        False,
    ]
    assert cached(ImagesInMemory(images + 1, labels, ()))
    assert cached(ImagesInMemory(images, labels.flip(0), ()))


def test_a_damaged_file_is_refused_by_name(cached, tmp_path):
    cached()
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name}, a cache of the features of .*, is damaged: .*; remove it"):
        cached()
    file.write_bytes(content[:50])
    with pytest.raises(ValueError, match="is damaged"):
        cached()
