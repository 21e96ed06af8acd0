"""Fixed 2-D sin-cos position embeddings (MAE, appendix A.1), and interpolation of position tables to other grids."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(width: int, grid: tuple[int, int], class_tokens: int = 1) -> Tensor:
    """Position embeddings of class tokens and a grid of patches.

    The first half of the channels encodes the column of a patch, the second its row; each half holds the sines and
    then the cosines at ``width / 4`` frequencies falling geometrically from 1 to 1 / 10000.

    Args:
        width: channels, a multiple of 4.
        grid: rows and columns of patches.
        class_tokens: number of class tokens.

    Returns:
        float32 ``(1, class_tokens + rows * columns, width)``; class tokens' embeddings are zero.
    """
    rows, columns = (torch.arange(count, dtype=torch.float64) for count in grid)
    patches = position_embedding(torch.cartesian_prod(rows, columns), width)
    return torch.cat([patches.new_zeros(class_tokens, width), patches])[None].float()


def position_embedding(coordinates: Tensor, width: int) -> Tensor:
    """Sin-cos embeddings of points in any number of dimensions, which need not lie on a grid.

    For ``(row, column)`` in units of patches they equal ``sincos_positions``: the last axis comes first, and each axis
    has ``width / axes`` channels, sines and then cosines.

    Args:
        coordinates: ``(..., axes)``.
        width: channels, a multiple of twice the number of axes.

    Returns:
        ``(..., width)`` in the dtype of the coordinates, float32 for integers.
    """
    axes = coordinates.shape[-1] if coordinates.ndim else 0
    if not axes or width < 1 or width % (2 * axes):
        raise ValueError(
            f"coordinates must have shape (..., axes) and width be a multiple of 2 * axes, "
            f"got {tuple(coordinates.shape)} and {width}"
        )
    dtype = coordinates.dtype if coordinates.dtype.is_floating_point else torch.float32
    wide, count = torch.promote_types(dtype, torch.float32), width // (2 * axes)
    frequencies = 10000.0 ** -(torch.arange(count, dtype=wide, device=coordinates.device) / count)
    angles = coordinates.flip(-1)[..., None].to(wide) * frequencies  # (..., axes, count)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(dtype)


def interpolate_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], class_tokens: int = 1
) -> Tensor:
    """Bicubic interpolation of ``(1, class_tokens + rows * columns, D)`` to another grid; class tokens' are kept.

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
