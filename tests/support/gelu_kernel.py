"""A kernel around GELU's device functions. Triton reads the source of kernels, so it is a module."""

import triton
import triton.language as tl

from crossmae_kernels.primitives.gelu import gelu, gelu_and_gradient


@triton.jit
def evaluate(h, value, gradient, like, count, BLOCK: tl.constexpr):  # noqa: N803
    """GELU by itself and its derivative, to the precision of the element type of ``like``."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    tile = tl.load(h + places, mask=inside, other=0.0)
    with_gradient, slope = gelu_and_gradient(tile, like.dtype.element_ty)
    # Both forms of the value must agree; where they do not, NaN.
    alone = gelu(tile, like.dtype.element_ty)
    same = (alone == with_gradient) | (alone != alone)
    tl.store(value + places, tl.where(same, alone, float("nan")), mask=inside)
    tl.store(gradient + places, slope, mask=inside)
