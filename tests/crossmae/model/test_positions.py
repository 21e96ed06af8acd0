"""Position embeddings, element by element."""

import math
import re

import pytest
import torch

from crossmae.model.positions import interpolate_positions, position_embedding, sincos_positions


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (4, 1)])
def test_every_element_on_square_and_other_grids(grid):
    width, (rows, columns) = 8, grid
    table = sincos_positions(width, grid)
    assert table.shape == (1, 1 + rows * columns, width)
    assert table.dtype == torch.float32
    assert not table[0, 0].any()
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / (width / 4)) for i in range(width // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[0, 1 + row * columns + column], torch.tensor(expected))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_element_of_places_that_are_on_no_grid(axes):
    coordinates = 9 * torch.rand(2, 5, axes, dtype=torch.float64) - 2
    found = position_embedding(coordinates, 12)
    for place, row in zip(coordinates.flatten(0, 1).tolist(), found.flatten(0, 1), strict=True):
        expected = []
        for coordinate in reversed(place):
            angles = [coordinate / 10000 ** (i / (6 // axes)) for i in range(6 // axes)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


def test_places_are_embedded_in_their_dtype_as_in_the_table():
    places = torch.cartesian_prod(torch.arange(4), torch.arange(6))
    for dtype in (torch.int64, torch.float32, torch.bfloat16):
        found = position_embedding(places.to(dtype), 16)
        assert found.dtype == (torch.float32 if dtype == torch.int64 else dtype)
        torch.testing.assert_close(found, sincos_positions(16, (4, 6), 0)[0].to(found.dtype))


@pytest.mark.parametrize(("shape", "width"), [((3, 2), 6), ((3, 2), 0), ((), 4), ((3, 0), 4)])
def test_widths_that_axes_do_not_divide_are_refused(shape, width):
    with pytest.raises(ValueError, match=re.escape(f"width be a multiple of 2 * axes, got {shape} and {width}")):
        position_embedding(torch.zeros(shape), width)


def test_interpolation_keeps_what_it_knows():
    table = sincos_positions(16, (4, 6))
    torch.testing.assert_close(interpolate_positions(table, (4, 6), (4, 6)), table)
    larger = interpolate_positions(table, (4, 6), (8, 12))
    assert larger.shape == (1, 97, 16)
    # The half that encodes the column does not vary along a column, nor the other half along a row.
    image = larger[0, 1:].view(8, 12, 16)
    torch.testing.assert_close(image[:, :, :8], image[:1, :, :8].expand(8, -1, -1))
    torch.testing.assert_close(image[:, :, 8:], image[:, :1, 8:].expand(-1, 12, -1))


def test_a_grid_that_is_not_the_table_s_is_refused():
    with pytest.raises(ValueError, match=r"1 \+ 5 \* 5 rows, got \(1, 17, 8\)"):
        interpolate_positions(sincos_positions(8, (4, 4)), (5, 5), (6, 6))
