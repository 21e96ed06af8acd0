"""Masks of cells, predicted patches far apart, and boolean masks."""

import re

import pytest
import torch

from crossmae.masking import Masking, cell_masking, furthest_masking, random_masking


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("grid", "cell"), [((16, 16), 4), ((8, 12), 4), ((6, 4), 2)])
def test_cells_are_hidden_whole(grid, cell):
    rows, columns = grid
    masking = cell_masking(200, grid, 0.5, cell=cell, generator=generator())
    assert masking.predicted_ids.shape == (200, rows * columns // 2)
    assert Masking(masking.visible_ids, masking.predicted_ids).checked(rows * columns)
    shown = torch.zeros(200, rows * columns).scatter(1, masking.visible_ids, 1).view(200, rows, columns)
    cells = shown.unfold(1, cell, cell).unfold(2, cell, cell).flatten(3).mean(-1)
    assert ((cells == 0) | (cells == 1)).all()
    # Each is shown as often as the others: half of 200 times, within five standard deviations.
    assert ((cells.mean(0) - 0.5).abs() < 5 * (0.25 / 200) ** 0.5).all()


@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.75), ((16, 16), 0.7), ((5, 9), 0.6)])
def test_counts_are_exact_where_cells_do_not_fit(grid, ratio):
    rows, columns = grid
    masking = cell_masking(20, grid, ratio, 0.2, generator=generator())
    plain = random_masking(20, rows * columns, ratio, 0.2)
    assert masking.visible_ids.shape == plain.visible_ids.shape
    assert masking.predicted_ids.shape == plain.predicted_ids.shape
    assert Masking(masking.visible_ids, masking.predicted_ids).checked(rows * columns)
    for visible in masking.visible_ids.tolist():
        cells = {}
        for place in visible:
            cells.setdefault((place // columns // 4, place % columns // 4), []).append(place)
        cut = []
        for (row, column), places in cells.items():
            whole = [
                r * columns + c
                for r in range(4 * row, min(4 * row + 4, rows))
                for c in range(4 * column, min(4 * column + 4, columns))
            ]
            assert sorted(places) == whole[: len(places)]
            if len(places) < len(whole):
                cut.append(row)
        assert len(cut) <= 1


def test_predicted_patches_of_hidden_cells_are_any_of_them():
    """Also the first of each, whose noise chose another cell: every place of a cell is predicted equally often."""
    masking = cell_masking(2000, (8, 8), 0.75, 0.25, generator=generator())
    places = torch.zeros(2000, 64).scatter(1, masking.predicted_ids, 1).mean(0)
    assert ((places - 0.25).abs() < 5 * (0.25 * 0.75 / 2000) ** 0.5).all()


@pytest.mark.parametrize("grid", [(8, 8), (5, 9), (1, 20)])
def test_furthest_patches_are_chosen_one_by_one(grid):
    rows, columns = grid
    noise = torch.rand(3, rows * columns, generator=generator())
    masking = furthest_masking(3, grid, 0.75, 0.3, noise)
    plain = random_masking(3, rows * columns, 0.75, 0.3, noise)
    assert torch.equal(masking.visible_ids, plain.visible_ids)
    for image in range(3):
        hidden, chosen = set(range(rows * columns)) - set(masking.visible_ids[image].tolist()), []
        while len(chosen) < plain.predicted_ids.shape[1]:
            # Furthest from what is chosen, in the plane; of equals, as at first of all, the one of highest noise.
            def rank(place, image=image, chosen=chosen):
                row, column = divmod(place, columns)
                apart = [(row - c // columns) ** 2 + (column - c % columns) ** 2 for c in chosen]
                return min(apart, default=0), float(noise[image, place])

            chosen.append(max(hidden - set(chosen), key=rank))
        assert masking.predicted_ids[image].tolist() == sorted(chosen)


def test_all_hidden_patches_may_be_predicted():
    masking = furthest_masking(2, (4, 4), 0.75, 0.75)
    assert Masking(masking.visible_ids, masking.predicted_ids).checked(16)
    assert masking.predicted_ids.shape == (2, 12)


def test_boolean_masks_as_ids():
    masked = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]]).bool()
    masking = Masking.from_mask(masked)
    assert masking.visible_ids.tolist() == [[1, 4], [0, 3]]
    assert masking.predicted_ids.tolist() == [[0, 2, 3, 5], [1, 2, 4, 5]]
    assert masking.checked(6) is masking
    predicted = torch.tensor([[0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 1]]).bool()
    some = Masking.from_mask(masked, predicted)
    assert (some.visible_ids.tolist(), some.predicted_ids.tolist()) == ([[1, 4], [0, 3]], [[2, 5], [1, 5]])


def test_counts_that_differ_are_trimmed_on_request():
    masked = torch.rand(400, 8, generator=generator()) < 0.5
    masked[:, 0], masked[:, 1] = True, False
    masked[7] = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0]).bool()  # seven visible, one masked
    masked[9] = ~masked[7]
    masked[9, 0], masked[9, 1] = True, False  # one visible
    masking = Masking.from_mask(masked, trim=True, generator=generator())
    assert masking.visible_ids.shape == masking.predicted_ids.shape == (400, 1)
    assert not masked.gather(1, masking.visible_ids).any()
    assert masked.gather(1, masking.predicted_ids).all()
    again = Masking.from_mask(masked, trim=True, generator=generator())
    assert torch.equal(again.predicted_ids, masking.predicted_ids)
    # Drawn, not the first: of images with several, the last patch stays about as often as any other.
    kept_last = masked[:, 7].float() * (masking.predicted_ids[:, 0] == 7)
    expected = (masked[:, 7] / masked.sum(1)).sum()
    assert abs(kept_last.sum() - expected) < 5 * expected**0.5


@pytest.mark.parametrize(
    ("masked", "predicted", "error", "message"),
    [
        (torch.ones(2, 4), None, TypeError, "masked must be a bool tensor, got torch.float32"),
        ([[True]], None, TypeError, "masked must be a bool tensor, got list"),
        (torch.ones(4).bool(), None, ValueError, "masked must have shape (batch, patches), the same"),
        (torch.eye(4).bool()[None], None, ValueError, "masked must have shape (batch, patches), the same"),
        (torch.ones(0, 4).bool(), None, ValueError, "of at least one image, got (0, 4)"),
        (torch.eye(4).bool(), torch.eye(3).bool(), ValueError, "predicted must have shape"),
        (torch.ones(2, 4).bool(), None, ValueError, "needs at least one visible patch, but image 0 has none"),
        (torch.tensor([[1, 0], [0, 0]]).bool(), None, ValueError, "must have as many visible patches, got 1 in image"),
        (
            torch.tensor([[1, 0, 0], [1, 1, 0]]).bool(), None, ValueError,
            "as many visible patches, got 1 in image 1 and 2 in image 0; trim=True keeps 1 of each, drawn at random",
        ),
        (
            torch.eye(3).bool(), torch.eye(3).bool().flip(0), ValueError,
            "image 0 predicts patch 2, which is visible",
        ),
    ],
)  # fmt: skip
def test_masks_that_are_none(masked, predicted, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Masking.from_mask(masked, predicted)


def test_cells_of_one_patch_are_refused():
    with pytest.raises(ValueError, match="cell must be at least 2, or cells are patches, got 1"):
        cell_masking(1, (4, 4), cell=1)
    with pytest.raises(ValueError, match=re.escape("noise must have shape (batch, 2 * rows * columns) = (1, 32)")):
        cell_masking(1, (4, 4), noise=torch.rand(1, 16))
