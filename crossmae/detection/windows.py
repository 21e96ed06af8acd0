"""Window attention: a block's self-attention within squares of the patch grid."""

from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.model.blocks import SelfAttention


class WindowAttention(SelfAttention):
    """A block's self-attention, restricted to windows (ViTDet, section 3).

    It replaces ``block.attn`` and shares its parameters; the block's norms, residuals and stochastic depth still see
    whole images.
    """

    def __init__(self, attn: SelfAttention, grid: tuple[int, int], window: int) -> None:
        nn.Module.__init__(self)
        self.heads, self.qkv, self.proj = attn.heads, attn.qkv, attn.proj
        self.grid = grid
        # A window larger than the image is the image.
        self.window = min(window, grid[0]), min(window, grid[1])

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Patches of the grid ``(B, rows * columns, D)`` -> the same."""
        packed = ck.norm_linear(x, self.qkv.weight, self.qkv.bias, norm.weight, norm.bias, norm.eps)
        # The query, key and value of a zero patch are the bias, so padding after the projection saves its products.
        attended = ck.self_attention_qkvpacked(partition(packed, self.grid, self.window, self.qkv.bias), self.heads)
        attended = merge(attended, self.grid, self.window)
        return ck.linear_residual(attended, self.proj.weight, self.proj.bias, residual=x)


def partition(x: Tensor, grid: tuple[int, int], window: tuple[int, int], padding: Tensor) -> Tensor:
    """``(B, rows * columns, D)`` -> ``(B * windows, patches of a window, D)``, row by row.

    If windows do not divide the grid, patches with the value ``padding`` ``(D,)`` are added at the bottom and right.
    """
    (rows, columns), (height, width) = grid, window
    x = x.unflatten(1, grid)
    below, right = -rows % height, -columns % width
    if below or right:
        padded = padding.to(x.dtype).expand(len(x), rows + below, columns + right, -1).clone()
        padded[:, :rows, :columns] = x
        x = padded
    x = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def merge(x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The inverse of ``partition``; drops the patches that it added."""
    (rows, columns), (height, width) = grid, window
    down, across = -(-rows // height), -(-columns // width)
    x = x.unflatten(1, window).unflatten(0, (-1, down, across))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, :rows, :columns].flatten(1, 2)
