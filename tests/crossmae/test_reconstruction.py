"""Predictions scattered back into pictures."""

import warnings
from dataclasses import replace

import pytest
import torch

import crossmae_kernels as ck
from crossmae.masking import random_masking
from crossmae.model import MaskedAutoencoder, Output
from crossmae.model.config import Config
from crossmae.reconstruction import block_predictions, reconstruct, reconstruction_columns, to_images, visible_part


def setup(normalize, channels=3):
    config = Config((12, 20), 4, channels, decoder_width=8, decoder_heads=2, normalize_targets=normalize)
    images = torch.randn(2, channels, 12, 20) * 2 + 3
    return config, images, random_masking(2, 15, 0.6, 0.4, generator=torch.Generator().manual_seed(0))


def patches_of(images, ids):
    return ck.gather_patches(images, ids, 4)


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
    with pytest.warns(UserWarning, match="leaks the target"):
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


def test_the_visible_part_is_nan_elsewhere():
    config, images, masking = setup(False)
    seen = visible_part(images, masking, config)
    assert torch.equal(patches_of(seen, masking.visible_ids), patches_of(images, masking.visible_ids))
    assert int(seen.isnan().sum()) == 2 * 9 * 48


STATISTICS = {"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.2, 0.3, 0.1)}
DECODERS = {
    "inter-block attention": {"feature_maps": (0, 1, 2)},
    "one map": {},
    "decoder self-attention": {"feature_maps": (1, 2), "decoder_self_attention": True},
    "MAE": {"decoder": "mae"},
}


def model(**settings):
    """A small model in float64 with random values in every parameter."""
    torch.manual_seed(0)
    sizes = {"encoder_width": 16, "encoder_depth": 2, "encoder_heads": 2, "decoder_width": 8, "decoder_heads": 2}
    model = MaskedAutoencoder(Config((12, 20), 4, **{**sizes, "decoder_depth": 3, **STATISTICS, **settings})).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def first_blocks(whole, count):
    """A model of its own with the first decoder blocks of another."""
    part = MaskedAutoencoder(replace(whole.config, decoder_depth=count)).double()
    state = whole.state_dict()
    if "decoder.mixing.weight" in state:
        state["decoder.mixing.weight"] = state["decoder.mixing.weight"][:count]
    part.load_state_dict({name: state[name] for name in part.state_dict()})
    return part.eval()


@pytest.mark.parametrize("settings", DECODERS.values(), ids=DECODERS.keys())
def test_block_predictions_are_those_of_decoders_that_end_there(settings):
    whole = model(**settings)
    masking = random_masking(2, 15, 0.6, 0.4, generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    output = whole(images, masking=masking)
    predictions = block_predictions(whole, whole.encoder(images, masking.visible_ids), masking)
    assert len(predictions) == 3
    assert torch.equal(predictions[-1], output.prediction)
    for count, prediction in enumerate(predictions, start=1):
        torch.testing.assert_close(prediction, first_blocks(whole, count)(images, masking=masking).prediction)
    assert (predictions[0] - predictions[1]).abs().max() > 0.1
    assert not any(block._forward_hooks for block in whole.decoder.blocks)

    columns = reconstruction_columns(whole, images, output, blocks=True)
    assert list(columns) == ["original", "masked", "after block 1", "after block 2", "reconstruction"]
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in STATISTICS.values())
    for name, prediction in zip(list(columns)[2:], predictions, strict=True):
        expected = reconstruct(images, prediction, masking, whole.config) * std + mean
        torch.testing.assert_close(columns[name], expected, rtol=0, atol=1e-6)


def test_no_hook_is_left_behind_by_a_failure():
    whole = model()
    with pytest.raises(ValueError, match="maps must be 1 feature map"):
        block_predictions(whole, [torch.zeros(2, 7, 5, dtype=torch.float64)], random_masking(2, 15))
    assert not any(block._forward_hooks for block in whole.decoder.blocks)


@pytest.mark.filterwarnings("ignore:statistics='true'")
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_perfect_predictions_give_every_byte_back(normalize, channels):
    statistics = {"pixel_mean": tuple(0.1 * i + 0.1 for i in range(channels)), "pixel_std": (0.07, 0.2, 0.9, 0.3, 0.1)}
    whole = model(
        channels=channels, normalize_targets=normalize, **{name: s[:channels] for name, s in statistics.items()}
    ).float()
    pixels = torch.randint(0, 256, (2, channels, 12, 20), dtype=torch.uint8)
    images = whole.normalized(pixels)
    masking = random_masking(2, 15, 0.6, 0.6)
    target = patches_of(images, masking.predicted_ids)
    if normalize:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    columns = reconstruction_columns(whole, images, Output(target.sum(), target, masking), statistics="true")
    for name in ("original", "reconstruction"):
        assert torch.equal((255 * columns[name]).round().to(torch.uint8), pixels)
    seen = (255 * columns["masked"]).round()
    assert int(seen.isnan().sum()) == 2 * 9 * 16 * channels
    assert torch.equal(seen[~seen.isnan()], pixels[~seen.isnan()].float())


def test_without_pixel_statistics_pictures_stay_normalised():
    whole = model(pixel_mean=None, pixel_std=None)
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    assert torch.equal(reconstruction_columns(whole, images, whole(images))["original"], images)
