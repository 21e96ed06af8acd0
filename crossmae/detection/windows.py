"""Window attention: a block's self-attention within squares of the grid of patches."""

from torch import Tensor, nn

import crossmae_kernels as ck
from crossmae.model.blocks import SelfAttention


class WindowAttention(SelfAttention):
    """The layers of a block's self-attention, which now attends within windows (ViTDet, section 3).

    It replaces ``block.attn`` and shares its parameters: the block's norms, residuals and stochastic depth see whole
    images as before.
    """

    def __init__(self, attn: SelfAttention, grid: tuple[int, int], window: int) -> None:
        nn.Module.__init__(self)
        self.heads, self.qkv, self.proj = attn.heads, attn.qkv, attn.proj
        self.grid = grid
        # A window that is larger than the image is the image.
        self.window = min(window, grid[0]), min(window, grid[1])

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Patches of the grid ``(B, rows * columns, D)`` -> the same."""
        packed = ck.norm_linear(x, self.qkv.weight, self.qkv.bias, norm.weight, norm.bias, norm.eps)
        # A patch of zeros has the bias as query, key and value. Padding behind the projection costs no products.
        attended = ck.self_attention_qkvpacked(partition(packed, self.grid, self.window, self.qkv.bias), self.heads)
        attended = merge(attended, self.grid, self.window)
        return ck.linear_residual(attended, self.proj.weight, self.proj.bias, residual=x)


def partition(x: Tensor, grid: tuple[int, int], window: tuple[int, int], padding: Tensor) -> Tensor:
    """``(B, rows * columns, D)`` -> ``(B * windows, patches of a window, D)``, row by row.

    Where windows do not divide the grid, patches of the value ``padding`` ``(D,)`` are added below and on the right.
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
    """The inverse of ``partition``; patches that it added are dropped."""
    (rows, columns), (height, width) = grid, window
    down, across = -(-rows // height), -(-columns // width)
    x = x.unflatten(1, window).unflatten(0, (-1, down, across))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, :rows, :columns].flatten(1, 2)
