"""Masks of other shapes: grids, blocks, cells, and predicted patches far apart."""

from typing import Literal, get_args

import torch
from torch import Tensor

from crossmae.masking.drawing import by_order, given_or_drawn, known, mask_counts, nearest, random_masking
from crossmae.masking.masks import Masking

MaskShape = Literal["random", "grid", "block", "cells", "furthest"]

_BLOCK_DRAWS = 3  # a block's centre row, centre column and aspect ratio


def grid_masking(
    batch: int,
    grid: tuple[int, int],
    stride: int = 2,
    prediction_ratio: float | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Masking:
    """One visible patch in every ``stride x stride`` cell, its first (MAE, table 1f, "grid").

    ``prediction_ratio`` of all patches are predicted, drawn at random among the masked ones; all by default.
    ``noise``, ``(batch, rows * columns)``, chooses them; drawn uniformly by default.
    """
    if stride < 2:
        raise ValueError(f"stride must be at least 2, or nothing is masked, got {stride}")
    rows, columns = grid
    noise = given_or_drawn(noise, batch, rows * columns, "rows * columns", generator, device)
    corner = noise.new_zeros(rows, columns)
    corner[::stride, ::stride] = 1
    return _structured(noise - 2 * corner.flatten(), _cells(grid, stride), prediction_ratio)


def grid_stride(grid: tuple[int, int], mask_ratio: float) -> int:
    """The stride of the grid mask that hides exactly the fraction ``mask_ratio`` of ``(rows, columns)`` patches.

    Raises:
        ValueError: if there is none; lists the possible ratios.
    """
    patches = grid[0] * grid[1]
    visible, _ = mask_counts(patches, mask_ratio, mask_ratio)
    strides: dict[int, int] = {}
    for stride in range(2, max(grid) + 1):
        strides.setdefault(_cells(grid, stride), stride)
    if visible not in strides:
        ratios = [f"{1 - cells / patches:.4g} (stride {stride})" for cells, stride in strides.items()]
        raise ValueError(
            f"a grid mask of {grid[0]} x {grid[1]} patches shows one patch of every stride x stride, which hides "
            f"{', '.join(ratios[:4])}; got mask_ratio {mask_ratio}"
        )
    return strides[visible]


def _cells(grid: tuple[int, int], stride: int) -> int:
    """How many ``stride x stride`` cells a grid has, including those cut by its border."""
    return -(-grid[0] // stride) * -(-grid[1] // stride)


def block_masking(
    batch: int,
    grid: tuple[int, int],
    mask_ratio: float = 0.75,
    prediction_ratio: float | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Masking:
    """One masked block per image, of random place and aspect ratio (MAE, table 1f, "block"), exact in count.

    The masked patches are the nearest to a random centre in a stretched maximum norm: a rectangle, cut at the
    border. ``prediction_ratio`` of all patches are predicted, drawn at random among the masked; all by default.
    ``noise``, ``(batch, 3 + rows * columns)``, places and stretches the block and chooses these; drawn uniformly by
    default.
    """
    rows, columns = grid
    visible, _ = mask_counts(rows * columns, mask_ratio, mask_ratio)
    noise = given_or_drawn(noise, batch, _BLOCK_DRAWS + rows * columns, "3 + rows * columns", generator, device)
    draw, noise = noise[:, :_BLOCK_DRAWS, None], noise[:, _BLOCK_DRAWS:]
    row = torch.arange(rows, device=draw.device).repeat_interleave(columns)
    column = torch.arange(columns, device=draw.device).repeat(rows)
    stretch = (2 * draw[:, 2] - 1).mul(0.7).exp()  # aspects from 1 : 2 to 2 : 1
    distance = torch.maximum(
        (row + 0.5 - draw[:, 0] * rows).abs() * stretch, (column + 0.5 - draw[:, 1] * columns).abs() / stretch
    )
    # Patches on a line are equally far, so sort stably to make the mask a function of its noise.
    masked = distance.argsort(dim=1, stable=True)[:, : rows * columns - visible]
    return _structured(
        torch.full_like(noise, -1).scatter(1, masked, noise.gather(1, masked)), visible, prediction_ratio
    )


def cell_masking(
    batch: int,
    grid: tuple[int, int],
    mask_ratio: float = 0.75,
    prediction_ratio: float | None = None,
    cell: int = 4,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Masking:
    """Mask whole random cells of ``cell x cell`` patches (Pixio, arXiv 2512.15715: 4 x 4).

    Exact in count: if a mask ratio is not a whole number of cells, or the border cuts some, only the last patches of
    one cell are masked. ``prediction_ratio`` of all patches are predicted, drawn at random among the masked; all by
    default. ``noise``, ``(batch, 2 * rows * columns)``, chooses cells, by the value at their first patch, and then
    these; drawn uniformly by default.
    """
    if cell < 2:
        raise ValueError(f"cell must be at least 2, or cells are patches, got {cell}")
    rows, columns = grid
    patches = rows * columns
    visible, _ = mask_counts(patches, mask_ratio, mask_ratio)
    noise = given_or_drawn(noise, batch, 2 * patches, "2 * rows * columns", generator, device)
    of_cells, noise = noise.split(patches, dim=1)
    first_row = torch.arange(rows, device=noise.device) // cell * cell
    first_column = torch.arange(columns, device=noise.device) // cell * cell
    first = (first_row[:, None] * columns + first_column).flatten()
    # Patches of a cell have equal keys, so sort stably to keep them together and in order.
    seen = of_cells[:, first].argsort(dim=1, stable=True)[:, :visible]
    return _structured(noise.scatter(1, seen, -1.0), visible, prediction_ratio)


def furthest_masking(
    batch: int,
    grid: tuple[int, int],
    mask_ratio: float = 0.75,
    prediction_ratio: float = 0.25,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Masking:
    """A random mask whose predicted patches are spread over it (furthest-point sampling; PR-MIM, arXiv 2411.15746).

    The first is the masked patch with the highest noise; each next one is the masked patch furthest from all chosen so
    far, in the plane, with ties broken by the highest noise. It takes one step of a few small operations per predicted
    patch. ``noise``, ``(batch, rows * columns)``, and the visible patches are those of ``random_masking``.
    """
    rows, columns = grid
    visible, predicted = mask_counts(rows * columns, mask_ratio, prediction_ratio)
    noise = given_or_drawn(noise, batch, rows * columns, "rows * columns", generator, device)
    seen = noise.argsort(dim=1)[:, :visible]
    axes = (torch.arange(size, device=noise.device) for size in grid)
    places = torch.cartesian_prod(*axes).to(noise.dtype)
    apart = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").square().round()
    # Squared distances are integers, so adding noise below 1 only breaks ties.
    nearest_chosen = torch.full_like(noise, rows**2 + columns**2).scatter(1, seen, -1.0)
    chosen = []
    for _ in range(predicted):
        chosen.append((nearest_chosen + noise).argmax(dim=1))
        nearest_chosen = torch.minimum(nearest_chosen, apart[chosen[-1]])
    return Masking(seen, torch.stack(chosen, dim=1).sort(dim=1).values, rows * columns)


def draw_masking(
    shape: MaskShape, grid: tuple[int, int], mask_ratio: float, prediction_ratio: float, noise: Tensor
) -> Masking:
    """Masks of a given shape, as a function of noise ``(B, N)`` with ``noise_length`` values per image.

    Raises ValueError like ``mask_counts`` and, for grids, ``grid_stride``.
    """
    batch = noise.shape[0]
    if shape == "random":
        return random_masking(batch, grid[0] * grid[1], mask_ratio, prediction_ratio, noise)
    if shape == "grid":
        return grid_masking(batch, grid, grid_stride(grid, mask_ratio), prediction_ratio, noise)
    if shape == "block":
        return block_masking(batch, grid, mask_ratio, prediction_ratio, noise)
    if shape == "cells":
        return cell_masking(batch, grid, mask_ratio, prediction_ratio, noise=noise)
    if shape == "furthest":
        return furthest_masking(batch, grid, mask_ratio, prediction_ratio, noise)
    raise ValueError(f"shape must be one of {', '.join(get_args(MaskShape))}, got {shape!r}")


def noise_length(shape: MaskShape, patches: int) -> int:
    """How many random numbers in [0, 1) determine an image's mask."""
    return {"block": patches + _BLOCK_DRAWS, "cells": 2 * patches}.get(shape, patches)


def _structured(priority: Tensor, visible: int, prediction_ratio: float | None) -> Masking:
    """The ``visible`` patches of lowest priority are seen; those of highest priority are predicted."""
    patches = priority.shape[1]
    masked = patches - visible
    predicted = masked if prediction_ratio is None else nearest(patches, known(prediction_ratio))
    if not 0 < predicted <= masked:
        raise ValueError(
            f"prediction_ratio {prediction_ratio} asks for {predicted} of {patches} patches; "
            f"this mask has {masked} to predict, and at least one is needed"
        )
    return by_order(priority.argsort(dim=1, stable=True), visible, predicted)
