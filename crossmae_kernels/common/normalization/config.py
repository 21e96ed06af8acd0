"""Tile sizes of the passes over rows: an analytic rule."""

from dataclasses import dataclass

# A row beyond this would not stay in the registers of a program of 16 warps.
WIDEST_ROW = 16 * 1024


@dataclass(frozen=True)
class Tiles:
    """Rows and columns of a program's tile, and its warps."""

    block_rows: int
    block_columns: int
    num_warps: int


def tiles(width: int) -> Tiles:
    """Whole rows, 4096 elements or more: 32 for each of 128 threads, which is 4 to 8 wide loads in flight."""
    block_columns = 1 << (width - 1).bit_length()
    block_rows = max(1, 4096 // block_columns)
    return Tiles(block_rows, block_columns, max(4, block_columns // 1024))


def width_refusals(width: int) -> list[str]:
    """Why rows so wide cannot be normalised by the kernels, if they cannot."""
    return [f"kernels normalise rows of up to {WIDEST_ROW}, these have {width}"] if width > WIDEST_ROW else []
