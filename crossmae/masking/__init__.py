"""Which patches the encoder sees and which the decoder predicts, as ids.

Masks are ids throughout: a training step has no boolean masks, no data-dependent shapes, and never waits for the
device.
"""

from crossmae.masking.drawing import Rounding, mask_counts, random_masking
from crossmae.masking.masks import Masking
from crossmae.masking.shapes import (
    MaskShape,
    block_masking,
    cell_masking,
    draw_masking,
    furthest_masking,
    grid_masking,
    grid_stride,
    noise_length,
)

__all__ = [
    "MaskShape",
    "Masking",
    "Rounding",
    "block_masking",
    "cell_masking",
    "draw_masking",
    "furthest_masking",
    "grid_masking",
    "grid_stride",
    "mask_counts",
    "noise_length",
    "random_masking",
]
