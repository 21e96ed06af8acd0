"""Device code that does with bfloat16 whatever kernels do, and sums, for tests of the interpreter."""

import triton
import triton.language as tl


@triton.jit
def cast(source, target, SIZE: tl.constexpr):  # noqa: N803
    places = tl.arange(0, SIZE)
    tl.store(target + places, tl.load(source + places).to(target.dtype.element_ty))


@triton.jit
def calculate(a, b, results, count, SIZE: tl.constexpr):  # noqa: N803
    """What else is in a row: the operators, then what has constants in it, then a bit pattern there and back."""
    places = tl.arange(0, SIZE)
    inside = places < count
    x = tl.load(a + places, mask=inside, other=-1.5)
    y = tl.load(b + places, mask=inside)
    tl.store(results + 0 * SIZE + places, x + y)
    tl.store(results + 1 * SIZE + places, x - y)
    tl.store(results + 2 * SIZE + places, x * y)
    tl.store(results + 3 * SIZE + places, x / y)
    tl.store(results + 4 * SIZE + places, -x)
    tl.store(results + 5 * SIZE + places, tl.abs(x))
    tl.store(results + 6 * SIZE + places, tl.minimum(x, y))
    tl.store(results + 7 * SIZE + places, tl.maximum(x, y))
    tl.store(results + 8 * SIZE + places, tl.where(x < y, x, y))
    tl.store(results + 9 * SIZE + places, tl.where(x <= y, 0.1, x))
    tl.store(results + 10 * SIZE + places, tl.where((x == y) | (x != x), tl.full((SIZE,), 3.3, x.dtype), x))
    tl.store(results + 11 * SIZE + places, x * 1.3)
    tl.store(results + 12 * SIZE + places, tl.zeros((SIZE,), x.dtype))
    tl.store(results + 13 * SIZE + places, x.to(tl.uint16, bitcast=True).to(x.dtype, bitcast=True))


@triton.jit
def reduce(a, results, ROWS: tl.constexpr, SIZE: tl.constexpr):  # noqa: N803
    """The sums, maxima and minima of rows."""
    rows = tl.arange(0, ROWS)
    x = tl.load(a + rows[:, None] * SIZE + tl.arange(0, SIZE)[None, :])
    tl.store(results + rows, tl.sum(x, axis=1))
    tl.store(results + ROWS + rows, tl.max(x, axis=1))
    tl.store(results + 2 * ROWS + rows, tl.min(x, axis=1))


@triton.jit
def add_up(a, results, SIZE: tl.constexpr):  # noqa: N803
    """The sums of columns, without and with their dimension, and of rows, of a square matrix."""
    places = tl.arange(0, SIZE)
    x = tl.load(a + places[:, None] * SIZE + places[None, :])
    tl.store(results + places, tl.sum(x, axis=0))
    tl.store(results + SIZE + places[None, :], tl.sum(x, axis=0, keep_dims=True))
    tl.store(results + 2 * SIZE + places, tl.sum(x, axis=1))


@triton.jit
def multiply(a, b, product, SIZE: tl.constexpr):  # noqa: N803
    """A product of two square matrices on top of what is there."""
    square = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(product + square, tl.dot(tl.load(a + square), tl.load(b + square), tl.load(product + square)))
