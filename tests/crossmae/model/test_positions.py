"""Position embeddings, element by element."""

import math

import pytest
import torch

from crossmae.model.positions import interpolate_positions, sincos_positions


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
