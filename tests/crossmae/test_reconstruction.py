"""Predictions scattered back into pictures."""

import warnings

import pytest
import torch

import crossmae
from crossmae.config import Config
from crossmae.masking import random_masking
from crossmae.reconstruction import reconstruct, to_images


def setup(normalize, channels=3):
    config = Config((12, 20), 4, channels, decoder_width=8, decoder_heads=2, normalize_targets=normalize)
    images = torch.randn(2, channels, 12, 20) * 2 + 3
    return config, images, random_masking(2, 15, 0.6, 0.4, generator=torch.Generator().manual_seed(0))


def patches_of(images, ids):
    return crossmae.model.ck.gather_patches(images, ids, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_of_an_image_make_the_image(channels):
    config, images, _ = setup(False, channels)
    everything = torch.arange(15).expand(2, -1)
    assert torch.equal(to_images(patches_of(images, everything), config), images)


def test_plain_pixels_go_where_they_belong():
    config, images, masking = setup(False)
    prediction = torch.randn(2, 6, 48)
    picture = reconstruct(images, prediction, masking, config)
    assert torch.equal(patches_of(picture, masking.predicted_ids), prediction)
    assert torch.equal(patches_of(picture, masking.visible_ids), patches_of(images, masking.visible_ids))
    used = torch.cat([masking.visible_ids, masking.predicted_ids], dim=1)
    neither = torch.tensor([sorted(set(range(15)) - set(ids)) for ids in used.tolist()])
    grey = patches_of(images, masking.visible_ids).mean(dim=(1, 2))
    torch.testing.assert_close(patches_of(picture, neither), grey[:, None, None].expand(2, 3, 48))


def test_true_statistics_give_the_image_back_and_warn():
    config, images, masking = setup(True)
    hidden = patches_of(images, masking.predicted_ids)
    perfect = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, keepdim=True) + 1e-6).sqrt()
    with pytest.warns(UserWarning, match="leaks what was to be predicted"):
        picture = reconstruct(images, perfect, masking, config, statistics="true")
    torch.testing.assert_close(patches_of(picture, masking.predicted_ids), hidden)


def test_visible_statistics_know_nothing_of_what_is_hidden():
    config, images, masking = setup(True)
    prediction = torch.randn(2, 6, 48)
    altered = reconstruct(images, torch.full_like(prediction, 7.0), masking, config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = reconstruct(images, prediction, masking, config)
        assert torch.equal(first, reconstruct(altered, prediction, masking, config))


def test_visible_statistics_are_weighted_by_inverse_squared_distance():
    config, images, masking = setup(True)
    picture = reconstruct(images, torch.ones(2, 6, 48), masking, config)
    seen = patches_of(images, masking.visible_ids)
    for image, (visible, predicted) in enumerate(zip(masking.visible_ids, masking.predicted_ids, strict=True)):
        for place, patch in enumerate(predicted.tolist()):
            row, column = divmod(patch, 5)
            weights = [1 / ((row - v // 5) ** 2 + (column - v % 5) ** 2) for v in visible.tolist()]
            mean = sum(w * p.mean() for w, p in zip(weights, seen[image], strict=True)) / sum(weights)
            variance = sum(w * p.var() for w, p in zip(weights, seen[image], strict=True)) / sum(weights)
            expected = (mean + (variance + 1e-6).sqrt()).expand(48)
            torch.testing.assert_close(patches_of(picture, masking.predicted_ids)[image, place], expected)


def test_unknown_statistics_are_refused():
    config, images, masking = setup(True)
    with pytest.raises(ValueError, match="must be 'visible' or 'true', got 'mine'"):
        reconstruct(images, torch.zeros(2, 6, 48), masking, config, statistics="mine")
