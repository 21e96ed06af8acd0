"""Fixed 2-D sin-cos position embeddings (MAE, appendix A.1), and tables of positions for grids of another shape."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(width: int, grid: tuple[int, int], class_tokens: int = 1) -> Tensor:
    """Position embeddings of class tokens and of a grid of patches.

    The first half of the channels encodes the column of a patch, the second its row; each half holds the sines and
    then the cosines at ``width / 4`` frequencies falling geometrically from 1 to 1 / 10000.

    Args:
        width: channels, a multiple of 4.
        grid: rows and columns of patches.
        class_tokens: how many there are.

    Returns:
        float32 ``(1, class_tokens + rows * columns, width)``; class tokens' embeddings are zero.
    """
    rows, columns = grid
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    patches = torch.cat([_sincos(width // 2, column), _sincos(width // 2, row)], dim=1)
    return torch.cat([patches.new_zeros(class_tokens, width), patches])[None].float()


def _sincos(width: int, position: Tensor) -> Tensor:
    """``(T,)`` positions -> ``(T, width)``: sines, then cosines."""
    frequency = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def interpolate_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], class_tokens: int = 1
) -> Tensor:
    """Bicubic interpolation of ``(1, class_tokens + rows * columns, D)`` to another grid; class tokens keep theirs.

    As in MAE and detectron2's ViTDet, without the antialiasing that timm adds.
    """
    if positions.shape[1] != class_tokens + old_grid[0] * old_grid[1]:
        raise ValueError(
            f"positions must hold {class_tokens} + {old_grid[0]} * {old_grid[1]} rows, got {tuple(positions.shape)}"
        )
    kept, patches = positions[:, :class_tokens], positions[:, class_tokens:]
    image = patches.unflatten(1, old_grid).permute(0, 3, 1, 2)
    wide = image.to(torch.promote_types(image.dtype, torch.float32))
    resized = F.interpolate(wide, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([kept, resized.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
