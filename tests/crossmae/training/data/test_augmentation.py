"""Crops and flips."""

import numpy as np
import pytest
import torch
from pictures import smooth
from PIL import Image

from crossmae.training.data.augmentation import RATIO, Augmentation, centred


def image(height, width, channels=3, dtype=torch.uint8):
    pixels = torch.from_numpy(smooth(0, height, width)).permute(2, 0, 1)[:1].expand(channels, -1, -1).contiguous()
    return pixels if dtype == torch.uint8 else pixels.to(dtype) / 255


def coordinates(height, width):
    """Rows in channel 0 and columns in channel 1, so that a result says which part it shows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).float()


@pytest.mark.parametrize(
    ("shape", "size", "box"),  # left, upper, right, lower
    [
        ((40, 100), (16, 16), (30, 0, 70, 40)),
        ((90, 33), (16, 16), (0, 28, 33, 61)),
        ((40, 100), (24, 12), (40, 0, 60, 40)),
        ((90, 33), (24, 12), (0, 12, 33, 78)),
        ((24, 12), (24, 12), (0, 0, 12, 24)),
        ((5, 9), (16, 16), (2, 0, 7, 5)),
    ],
)
def test_centred_is_the_largest_part_of_the_middle(shape, size, box):
    pixels = smooth(0, *shape)
    expected = np.array(Image.fromarray(pixels).crop(box).resize(size[::-1], Image.Resampling.BICUBIC), int)
    result = centred(torch.from_numpy(pixels).permute(2, 0, 1), size).permute(1, 2, 0).numpy()
    assert np.abs(result - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (30, 20)])
def test_any_image_becomes_one_of_the_size(channels, dtype, shape):
    for crop_scale in (None, (0.2, 1.0)):
        result = Augmentation((8, 12), crop_scale, flip=True)(image(*shape, channels, dtype))
        assert result.shape == (channels, 8, 12)
        assert result.dtype == dtype
        assert result.is_contiguous()


def test_crops_have_the_shares_and_shapes_that_were_asked_for():
    torch.manual_seed(0)
    augmentation = Augmentation((32, 32), (0.2, 0.5), flip=True)
    shares, ratios, mirrored = [], [], []
    for _ in range(300):
        rows, columns = augmentation(coordinates(200, 240))
        height, width = (abs(float(c[-2] - c[1])) * 32 / 29 for c in (rows[:, 16], columns[16]))
        shares.append(height * width / (200 * 240))
        ratios.append(width / height)
        mirrored.append(bool(columns[16, 0] > columns[16, -1]))
    assert 0.18 < min(shares) < 0.23
    assert 0.46 < max(shares) < 0.53
    assert RATIO[0] * 0.95 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < RATIO[1] * 1.05
    assert 0.4 < np.mean(mirrored) < 0.6


def test_nothing_is_random_where_nothing_was_asked_for():
    augmentation = Augmentation((32, 32), None, flip=False)
    digit = image(32, 32, 1)
    assert all(torch.equal(augmentation(digit), digit) for _ in range(8))


def test_images_large_enough_for_the_smallest_crop():
    assert Augmentation((224, 112), None, True).at_least == (224, 112)
    height, width = Augmentation((224, 224), (0.2, 1.0), True).at_least
    assert height == width == 579  # the narrowest crop of 579 x 579 is sqrt(0.2 * 3 / 4) * 579 = 224.2 wide
