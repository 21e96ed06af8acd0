"""Counts, distribution and validity of masks."""

import re
from fractions import Fraction

import pytest
import torch

import crossmae
from crossmae.masking import (
    Masking,
    block_masking,
    draw_masking,
    grid_masking,
    grid_stride,
    mask_counts,
    noise_length,
    random_masking,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("patches", [1, 2, 7, 49, 64, 196, 225, 256, 1024])
@pytest.mark.parametrize("mask", ["0.1", "0.5", "0.6", "0.75", "0.8", "0.9", "0.95"])
@pytest.mark.parametrize("share", ["0.05", "0.25", "0.3", "1"])
def test_exact_counts_are_the_nearest(patches, mask, share):
    predict = min(Fraction(mask), Fraction(share))
    try:
        visible, predicted = mask_counts(patches, float(mask), float(predict))
    except ValueError:
        assert patches * predict < Fraction(1, 2) or patches * (1 - Fraction(mask)) <= Fraction(1, 2)
        return
    assert abs(visible - patches * (1 - Fraction(mask))) <= Fraction(1, 2)
    assert abs(predicted - patches * predict) <= Fraction(1, 2)
    assert predicted <= patches - visible
    if predict == Fraction(mask):
        assert visible + predicted == patches


@pytest.mark.parametrize(
    ("patches", "mask", "predict", "exact", "release"),
    [
        (196, 0.75, 0.25, (49, 49), (49, 49)),
        (225, 0.8, 0.8, (45, 180), (44, 181)),
        (196, 0.9, 0.25, (20, 49), (19, 50)),
        (256, 0.75, 0.5, (64, 128), (64, 128)),
    ],
)
def test_both_roundings(patches, mask, predict, exact, release):
    assert mask_counts(patches, mask, predict) == exact
    assert mask_counts(patches, mask, predict, "release") == release


def test_lowest_noise_is_visible_and_highest_predicted():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4]])
    masking = random_masking(1, 8, 0.75, 0.25, noise=noise)
    assert masking.visible_ids.tolist() == [[1, 5]]
    assert masking.predicted_ids.tolist() == [[0, 6]]


def test_random_masks_are_partitions_and_uniform():
    masking = random_masking(2000, 16, 0.75, 0.5, generator=generator())
    both = torch.cat([masking.visible_ids, masking.predicted_ids], dim=1)
    assert (both.sort(dim=1).values.diff(dim=1) > 0).all()
    for ids, share in ((masking.visible_ids, 0.25), (masking.predicted_ids, 0.5)):
        frequency = ids.flatten().bincount(minlength=16) / 2000
        spread = (share * (1 - share) / 2000) ** 0.5
        assert ((frequency - share).abs() < 5 * spread).all()


def test_the_mask_is_the_first_draw_of_a_forward_pass():
    model = crossmae.create_model("crossmae_vit_tiny_patch4")
    torch.manual_seed(7)
    noise = torch.rand(2, 64)
    torch.manual_seed(7)
    out = model(torch.zeros(2, 3, 32, 32))
    assert torch.equal(out.masking.visible_ids, random_masking(2, 64, 0.75, 0.25, noise=noise).visible_ids)


def test_generator_repeats():
    first, second = (random_masking(2, 64, generator=generator(3)) for _ in range(2))
    assert torch.equal(first.visible_ids, second.visible_ids)
    assert torch.equal(first.predicted_ids, second.predicted_ids)


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 8)])
def test_grid_masks(grid):
    rows, columns = grid
    masking = grid_masking(3, grid, generator=generator())
    visible = {r * columns + c for r in range(0, rows, 2) for c in range(0, columns, 2)}
    for seen, predicted in zip(masking.visible_ids.tolist(), masking.predicted_ids.tolist(), strict=True):
        assert set(seen) == visible
        assert sorted(seen + predicted) == list(range(rows * columns))
    few = grid_masking(3, grid, prediction_ratio=0.25, generator=generator())
    assert few.predicted_ids.shape[1] == mask_counts(rows * columns, 0.75, 0.25)[1]
    assert few.checked(rows * columns) is few


@pytest.mark.parametrize("grid", [(14, 14), (8, 16)])
def test_block_masks_hide_one_rectangle(grid):
    rows, columns = grid
    masking = block_masking(20, grid, 0.5, generator=generator())
    assert masking.predicted_ids.shape == (20, rows * columns // 2)
    again = Masking(masking.visible_ids, masking.predicted_ids).checked(rows * columns)
    assert torch.equal(again.visible_ids, masking.visible_ids)
    for ids in masking.predicted_ids:
        row, column = ids // columns, ids % columns
        box = (row.max() - row.min() + 1) * (column.max() - column.min() + 1)
        # A rectangle but for its last, unfinished lines of one row or column on each side.
        assert box - len(ids) <= 2 * (rows + columns)


def test_patches_as_far_as_others_are_hidden_in_order():
    """All draws in the middle: a square around the centre, and of the next lines, equally far, the first patches."""
    noise = torch.cat([torch.full((1, 3), 0.5), torch.rand(1, 64, generator=generator())], dim=1)
    square = [8 * row + column for row in range(2, 6) for column in range(2, 6)]
    assert block_masking(1, (8, 8), 0.25, noise=noise).predicted_ids.tolist() == [square]
    around = [8 * row + column for row in range(1, 7) for column in range(1, 7)]
    first = [place for place in around if place not in square][:4]
    assert block_masking(1, (8, 8), 20 / 64, noise=noise).predicted_ids.tolist() == [sorted(square + first)]


@pytest.mark.parametrize(
    ("shape", "draws", "mask_ratio"), [("random", 0, 0.5), ("grid", 0, 0.75), ("block", 3, 0.5), ("cells", 64, 0.5)]
)
def test_of_the_hidden_patches_those_of_highest_noise_are_predicted(shape, draws, mask_ratio):
    noise = torch.rand(5, draws + 64, generator=generator())
    masking = draw_masking(shape, (8, 8), mask_ratio, 0.25, noise)
    for image, (visible, predicted) in enumerate(zip(masking.visible_ids, masking.predicted_ids, strict=True)):
        hidden = set(range(64)) - set(visible.tolist())
        ranked = sorted(hidden, key=lambda place, image=image: float(noise[image, draws + place]))
        assert predicted.tolist() == sorted(ranked[-16:])


@pytest.mark.parametrize("shape", ["random", "grid", "block", "cells", "furthest"])
def test_a_mask_is_a_function_of_its_image_s_noise(shape):
    noise = torch.rand(6, noise_length(shape, 196), generator=generator())
    together = draw_masking(shape, (14, 14), 0.75, 0.25, noise)
    assert (together.visible_ids.shape, together.predicted_ids.shape) == ((6, 49), (6, 49))
    assert Masking(together.visible_ids, together.predicted_ids).checked(196)
    for image in range(6):
        alone = draw_masking(shape, (14, 14), 0.75, 0.25, noise[image : image + 1])
        assert torch.equal(alone.visible_ids[0], together.visible_ids[image])
        assert torch.equal(alone.predicted_ids[0], together.predicted_ids[image])
    assert len({tuple(ids) for ids in together.predicted_ids.tolist()}) == 6


@pytest.mark.parametrize(
    ("grid", "mask_ratio", "stride"),
    [((14, 14), 0.75, 2), ((14, 14), 0.8724, 3), ((16, 8), 0.75, 2), ((16, 16), 0.9375, 4), ((5, 7), 0.6571, 2)],
)
def test_the_stride_of_a_grid_hides_just_the_ratio(grid, mask_ratio, stride):
    assert grid_stride(grid, mask_ratio) == stride
    masking = grid_masking(1, grid, stride)
    visible = sum(row % stride == 0 and column % stride == 0 for row in range(grid[0]) for column in range(grid[1]))
    assert masking.visible_ids.shape[1] == visible == mask_counts(grid[0] * grid[1], mask_ratio, mask_ratio)[0]


@pytest.mark.parametrize(("grid", "mask_ratio"), [((14, 14), 0.5), ((7, 7), 0.75), ((14, 14), 0.9)])
def test_a_grid_that_cannot_hide_a_ratio_names_those_that_it_can(grid, mask_ratio):
    with pytest.raises(ValueError, match=rf"a grid mask of .*; got mask_ratio {mask_ratio}") as refused:
        grid_stride(grid, mask_ratio)
    possible = re.findall(r"(0\.\d+) \(stride (\d)\)", str(refused.value))
    assert len(possible) >= 3
    for ratio, stride in possible:
        assert grid_stride(grid, float(ratio)) == int(stride)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must lie in (0, 1), got 1.0"),
        ({"mask_ratio": 1.5}, "mask_ratio"),
        ({"mask_ratio": 0}, "mask_ratio"),
        ({"mask_ratio": float("nan")}, "mask_ratio"),
        ({"prediction_ratio": 0.8}, "prediction_ratio must lie in (0, mask_ratio = 0.75], got 0.8"),
        ({"prediction_ratio": 0.0}, "prediction_ratio"),
        ({"prediction_ratio": 0.01}, "no patch would be predicted: 16 patches"),
        ({"mask_ratio": 0.99}, "no patch would be visible: 16 patches"),
        ({"rounding": "up"}, "rounding must be 'exact' or 'release', got 'up'"),
        ({"noise": torch.rand(2, 15)}, "noise must have shape (batch, patches) = (2, 16), got (2, 15)"),
    ],
)
def test_wrong_ratios(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        random_masking(2, 16, **arguments)


@pytest.mark.parametrize(
    ("visible", "predicted", "error", "message"),
    [
        ([[0, 1]], [[2, 16]], ValueError, "predicted_ids must lie in [0, 16), got ids from 2 to 16"),
        ([[0, -1]], [[2, 3]], ValueError, "visible_ids must lie in [0, 16), got ids from -1 to 0"),
        ([[5, 5]], [[2, 3]], ValueError, "image 0 names patch 5 twice"),
        ([[0, 1], [0, 3]], [[2, 3], [4, 3]], ValueError, "image 1 names patch 3 twice"),
        ([[0, 1]], [[2, 3], [4, 5]], ValueError, "agree in batch"),
        ([0, 1], [2, 3], ValueError, "visible_ids must have shape"),
        ([[]], [[2, 3]], TypeError, "visible_ids must be an int64 or int32 tensor, got torch.float32"),
        ([[0.0]], [[2]], TypeError, "got torch.float32"),
    ],
)
def test_wrong_masks_of_one_s_own(visible, predicted, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Masking(torch.tensor(visible), torch.tensor(predicted)).checked(16)


def test_other_wrong_masks():
    with pytest.raises(ValueError, match="at least one id"):
        Masking(torch.tensor([[1]]), torch.empty(1, 0, dtype=torch.int64)).checked(16)
    with pytest.raises(TypeError, match="got list"):
        Masking([[1]], torch.tensor([[2]])).checked(16)
    with pytest.raises(ValueError, match="stride must be at least 2"):
        grid_masking(1, (4, 4), stride=1)
    with pytest.raises(ValueError, match="has 12 to predict"):
        grid_masking(1, (4, 4), prediction_ratio=0.9)
    with pytest.raises(ValueError, match=re.escape("noise must have shape (batch, 3 + rows * columns) = (1, 19)")):
        block_masking(1, (4, 4), noise=torch.rand(1, 16))
    with pytest.raises(ValueError, match="shape must be one of random, grid, block, cells, furthest, got 'blocks'"):
        draw_masking("blocks", (4, 4), 0.75, 0.25, torch.rand(1, 16))


@pytest.mark.parametrize("ratios", [("a", 0.25), (0.75, None), (0.75, "a")])
def test_ratios_are_numbers(ratios):
    with pytest.raises(TypeError, match=r"_ratio must be a number, got (None|'a')"):
        random_masking(2, 16, *ratios)


def test_a_models_ratio_is_a_number():
    with pytest.raises(TypeError, match="mask_ratio must be a number, got 'a'"):
        crossmae.create_model("crossmae_vit_tiny_patch4")(torch.zeros(1, 3, 32, 32), mask_ratio="a")


@pytest.mark.parametrize(
    ("noise", "message"),
    [([0.5] * 16, "noise must be a tensor, got list"), (torch.full((2, 16), torch.nan), "noise .* got NaN")],
)
def test_noise_is_a_tensor_that_has_an_order(noise, message):
    with pytest.raises((TypeError, ValueError), match=message):
        random_masking(2, 16, noise=noise)


@pytest.mark.parametrize(("coordinates", "width"), [([[1.0, 2.0]], 8), (torch.zeros(1, 2), "a"), (torch.zeros(2), 8.0)])
def test_coordinates_are_a_tensor_and_width_an_integer(coordinates, width):
    with pytest.raises(TypeError, match=r"coordinates must be a tensor \(..., axes\) and width an integer, got"):
        crossmae.position_embedding(coordinates, width)
