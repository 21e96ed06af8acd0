"""Fixed 2-D sin-cos position embeddings (MAE, appendix A.1), for grids of any shape."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Position embeddings of a class token and of a grid of patches.

    The first half of the channels encodes the column of a patch, the second its row; each half holds the sines and
    then the cosines at ``width / 4`` frequencies falling geometrically from 1 to 1 / 10000.

    Args:
        width: channels, a multiple of 4.
        grid: rows and columns of patches.

    Returns:
        float32 ``(1, 1 + rows * columns, width)``; the class token's embedding is zero.
    """
    rows, columns = grid
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    patches = torch.cat([_sincos(width // 2, column), _sincos(width // 2, row)], dim=1)
    return torch.cat([patches.new_zeros(1, width), patches])[None].float()


def _sincos(width: int, position: Tensor) -> Tensor:
    """``(T,)`` positions -> ``(T, width)``: sines, then cosines."""
    frequency = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def interpolate_positions(positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Bicubic interpolation of ``(1, 1 + rows * columns, D)`` to another grid; the class token's row is kept."""
    if positions.shape[1] != 1 + old_grid[0] * old_grid[1]:
        raise ValueError(f"positions must hold 1 + {old_grid[0]} * {old_grid[1]} rows, got {tuple(positions.shape)}")
    class_token, patches = positions[:, :1], positions[:, 1:]
    image = patches.unflatten(1, old_grid).permute(0, 3, 1, 2)
    resized = F.interpolate(image.float(), size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([class_token, resized.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
