"""GELU on the device: ``h Phi(h)`` with the normal distribution's ``Phi(h) = (1 + erf(h / sqrt 2)) / 2``.

float32 uses the error function. For 16-bit results there is a form with half the instructions: ``log2 Phi(-x)`` is
smooth and nearly a parabola, so a polynomial in ``x = |h|`` and one ``exp2`` give the lower tail with a small
*relative* error however far out, and ``h Phi(h) = max(h, 0) - x Phi(-x)`` loses nothing of it. The polynomials are
minimax fits (Lawson's reweighted least squares). Apart from rounding, they are off by at most a fifth (float16) or a
third (bfloat16) of half a unit in the last place, over all finite arguments whose result is above 2^-120.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossmae_kernels.runtime.launch import blocks, on_device_of

SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)
MINUS_HALF_LOG2_E = tl.constexpr(-0.7213475204444817)


# float16: relative error 2^-14.4 up to 6, beyond which x Phi(-x) is below half of the least float16.
LIMIT_FLOAT16 = tl.constexpr(6.0)
A0 = tl.constexpr(-1.000064730644226)
A1 = tl.constexpr(-1.1501742601394653)
A2 = tl.constexpr(-0.4612719416618347)
A3 = tl.constexpr(-0.05118533596396446)
A4 = tl.constexpr(0.007195565849542618)
A5 = tl.constexpr(-0.0006111000548116863)
A6 = tl.constexpr(2.29900633712532e-05)

# bfloat16: relative error 2^-10.7 up to 13.5, beyond which Phi(-x) leaves the range of normal numbers.
LIMIT_BFLOAT16 = tl.constexpr(13.5)
B0 = tl.constexpr(-1.0008654594421387)
B1 = tl.constexpr(-1.142186164855957)
B2 = tl.constexpr(-0.47400814294815063)
B3 = tl.constexpr(-0.04385265335440636)
B4 = tl.constexpr(0.005320681259036064)
B5 = tl.constexpr(-0.0004017736064270139)
B6 = tl.constexpr(1.6807820429676212e-05)
B7 = tl.constexpr(-2.9573524784609617e-07)


@triton.jit
def lower_tail(h, DTYPE: tl.constexpr):
    """``x = |h|``, clamped to the relevant range, and ``Phi(-x)`` to the precision of a 16-bit dtype."""
    if DTYPE == tl.float16:
        x = tl.minimum(tl.abs(h), LIMIT_FLOAT16)
        exponent = (((((x * A6 + A5) * x + A4) * x + A3) * x + A2) * x + A1) * x + A0
    else:
        x = tl.minimum(tl.abs(h), LIMIT_BFLOAT16)
        exponent = ((((((x * B7 + B6) * x + B5) * x + B4) * x + B3) * x + B2) * x + B1) * x + B0
    return x, tl.exp2(exponent)


@triton.jit
def gelu(h, DTYPE: tl.constexpr):
    """GELU of a float32 tile, to the precision of ``DTYPE``."""
    if DTYPE == tl.float32:
        result = 0.5 * h * (1.0 + tl.erf(h * SQRT_HALF))
    else:
        x, tail = lower_tail(h, DTYPE)
        # Not a maximum with 0, which would lose NaN.
        result = 0.5 * h + 0.5 * tl.abs(h) - x * tail
    return result


@triton.jit
def gelu_and_gradient(h, DTYPE: tl.constexpr):
    """GELU of a float32 tile, and ``Phi(h) + h phi(h)``, to the precision of ``DTYPE``."""
    if DTYPE == tl.float32:
        distribution = 0.5 * (1.0 + tl.erf(h * SQRT_HALF))
        activation = h * distribution
    else:
        x, tail = lower_tail(h, DTYPE)
        distribution = tl.where(h > 0.0, 1.0 - tail, tail)
        activation = 0.5 * h + 0.5 * tl.abs(h) - x * tail
    return activation, distribution + h * (tl.exp2(h * h * MINUS_HALF_LOG2_E) * DENSITY_AT_0)


@triton.jit
def store_hidden_gradients(
    dactivated, h, dhidden, activated, sums, first_row, row_tile, columns, inside,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """From tiles ``dactivated`` and ``h``, store dhidden, GELU again unless ``activated`` is None, and column sums.

    Both tensors are ``(R, WIDTH)``, contiguous; ``sums`` is ``(row tiles, WIDTH)``, float32.
    """
    activation, gradient = gelu_and_gradient(h.to(tl.float32), dhidden.dtype.element_ty)
    dh = dactivated * gradient
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    offsets = tl.arange(0, BLOCK_M)[:, None] * WIDTH + columns[None, :]
    dtype: tl.constexpr = dhidden.dtype.element_ty
    low = dh.to(dtype)
    if activated is not None:
        activation = activation.to(dtype)
        if dtype.primitive_bitwidth == 16:
            # Two in a word go to the layout of the stores together. By itself one would be computed once more, in it.
            words = activation.to(tl.uint16, bitcast=True).to(tl.uint32) << 16 | low.to(tl.uint16, bitcast=True)
            low = words.to(tl.uint16).to(dtype, bitcast=True)
            activation = (words >> 16).to(tl.uint16).to(dtype, bitcast=True)
        tl.store(activated + first_row * WIDTH + offsets, activation, mask=mask)
    tl.store(dhidden + first_row * WIDTH + offsets, low, mask=mask)
    # Rows outside the tensor have no gradient, so they add 0.
    tl.store(sums + row_tile.to(tl.int64) * WIDTH + columns, tl.sum(dh, axis=0), mask=columns < WIDTH)


@triton.jit(do_not_specialize=["num_rows"])
def gelu_backward_kernel(
    dactivated, hidden, dhidden, activated, sums, dactivated_row, num_rows,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (row tile, column tile)."""
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < num_rows - first_row
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    gradients = dactivated + first_row * dactivated_row + rows[:, None] * dactivated_row + columns[None, :]
    gradient = tl.load(gradients, mask=mask, other=0.0).to(tl.float32)
    h = tl.load(hidden + first_row * WIDTH + rows[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0)
    store_hidden_gradients(
        gradient, h, dhidden, activated, sums, first_row, tl.program_id(0), columns, inside, WIDTH, BLOCK_M
    )


# 16 elements per thread of 256, in wide loads from two tensors.
BLOCK_M, BLOCK_N, NUM_WARPS = 32, 128, 8


def gelu_backward(dactivated: Tensor, hidden: Tensor, wants_activated: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Rows ``(R, H)`` -> gradient of ``hidden``, GELU of it if requested, and that gradient's sums for ``totals``.

    The gradient may have any row stride; ``hidden`` is contiguous.
    """
    rows, width = hidden.shape
    dhidden = torch.empty_like(hidden)
    activated = torch.empty_like(hidden) if wants_activated else None
    row_tiles = blocks(rows, BLOCK_M)
    sums = torch.empty(row_tiles, width, dtype=torch.float32, device=hidden.device)
    if hidden.numel():
        with on_device_of(hidden):
            gelu_backward_kernel[(row_tiles, blocks(width, BLOCK_N))](
                dactivated, hidden, dhidden, activated, sums, dactivated.stride(0), rows,
                WIDTH=width, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, num_warps=NUM_WARPS,
            )  # fmt: skip
    return dhidden, activated, sums
