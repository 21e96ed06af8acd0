"""GELU on the device: ``h Phi(h)`` with the normal distribution's ``Phi(h) = (1 + erf(h / sqrt 2)) / 2``."""

# Compile-time arguments are in capitals, and nothing is annotated but them, as everywhere in the field.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)


@triton.jit
def gelu(h):
    """Of a float32 tile."""
    return 0.5 * h * (1.0 + tl.erf(h * SQRT_HALF))


@triton.jit
def gelu_and_gradient(h):
    """GELU of a float32 tile, and ``Phi(h) + h phi(h)``."""
    distribution = 0.5 * (1.0 + tl.erf(h * SQRT_HALF))
    return h * distribution, distribution + h * (DENSITY_AT_0 * tl.exp(-0.5 * h * h))


@triton.jit
def store_hidden_gradients(
    dactivated, h, dhidden, activated, sums, first_row, row_tile, columns, inside,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Of tiles ``dactivated`` and ``h``: dhidden, GELU again unless ``activated`` is None, and column sums.

    Both tensors are ``(R, WIDTH)``, contiguous; ``sums`` is ``(row tiles, WIDTH)``, float32.
    """
    activation, gradient = gelu_and_gradient(h.to(tl.float32))
    dh = dactivated * gradient
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    offsets = tl.arange(0, BLOCK_M)[:, None] * WIDTH + columns[None, :]
    tl.store(dhidden + first_row * WIDTH + offsets, dh.to(dhidden.dtype.element_ty), mask=mask)
    if activated is not None:
        activation = activation.to(activated.dtype.element_ty)
        tl.store(activated + first_row * WIDTH + offsets, activation, mask=mask)
    # Rows outside of the tensor have no gradient, so they add 0.
    tl.store(sums + row_tile.to(tl.int64) * WIDTH + columns, tl.sum(dh, axis=0), mask=columns < WIDTH)


@triton.jit(do_not_specialize=["num_rows"])
def gelu_backward(
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
