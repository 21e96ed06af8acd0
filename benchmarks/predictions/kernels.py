"""Kernels of published measurements, written here with the tiles that were published."""

import triton
import triton.language as tl


@triton.jit
def softmax_kernel(x, out, rows, columns, x_row, out_row, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Rows of a matrix, each held whole; programs stay and take rows in turn."""
    column = tl.arange(0, BLOCK)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        values = tl.load(x + row * x_row + column, mask=column < columns, other=-float("inf"))
        weights = tl.exp(values - tl.max(values, 0))
        tl.store(out + row * out_row + column, weights / tl.sum(weights, 0), mask=column < columns)


@triton.jit
def add_kernel(x, y, out, count, BLOCK: tl.constexpr):
    """Sum of two vectors."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x + place, mask=place < count) + tl.load(y + place, mask=place < count)
    tl.store(out + place, total, mask=place < count)


@triton.jit
def layer_norm_kernel(x, out, weight, bias, means, scales, columns, eps, BLOCK: tl.constexpr):
    """A row of a matrix for each program, read once."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < columns
    values = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / columns
    centred = tl.where(inside, values - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / columns + eps)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)
    _write_normalized(centred * scale, out + row * columns, weight, bias, column, inside)


@triton.jit
def layer_norm_in_passes_kernel(x, out, weight, bias, means, scales, columns, eps, BLOCK: tl.constexpr):
    """The same, with a loop over the row for the mean, one for the deviation and one for the result."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x += row * columns
    sums, squares = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        sums += tl.load(x + first + column, mask=first + column < columns, other=0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / columns
    for first in range(0, columns, BLOCK):
        inside = first + column < columns
        centred = tl.load(x + first + column, mask=inside, other=0.0).to(tl.float32) - mean
        squares += tl.where(inside, centred * centred, 0.0)
    scale = 1 / tl.sqrt(tl.sum(squares, 0) / columns + eps)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)
    for first in range(0, columns, BLOCK):
        inside = first + column < columns
        values = tl.load(x + first + column, mask=inside, other=0.0).to(tl.float32)
        _write_normalized((values - mean) * scale, out + row * columns, weight, bias, first + column, inside)


@triton.jit
def _write_normalized(normalized, out, weight, bias, column, inside):
    weights, biases = tl.load(weight + column, mask=inside), tl.load(bias + column, mask=inside)
    tl.store(out + column, (normalized * weights + biases).to(out.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_backward_kernel(
    x, dx, dy, weight, means, scales, dweights, dbiases, locks, columns,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of a row; what it adds to weight and bias goes to the sums of its group, one program at a time."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside, group = column < columns, row % GROUPS
    values = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    weighted = gradient * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scales + row)
    normalized = tl.where(inside, (values - tl.load(means + row)) * scale, 0.0)
    along, mean = tl.sum(normalized * weighted, 0) / columns, tl.sum(weighted, 0) / columns
    tl.store(dx + row * columns + column, (weighted - normalized * along - mean) * scale, mask=inside)
    dweight = (gradient * normalized).to(dweights.dtype.element_ty)
    dbias = gradient.to(dbiases.dtype.element_ty)
    dweights += group * columns
    dbiases += group * columns
    while tl.atomic_cas(locks + group, 0, 1) == 1:
        pass
    if tl.load(locks + GROUPS + group) == 0:
        tl.atomic_xchg(locks + GROUPS + group, 1)
    else:
        dweight += tl.load(dweights + column, mask=inside)
        dbias += tl.load(dbiases + column, mask=inside)
    tl.store(dweights + column, dweight, mask=inside)
    tl.store(dbiases + column, dbias, mask=inside)
    tl.debug_barrier()
    tl.atomic_xchg(locks + group, 0)


@triton.jit
def group_sums_kernel(dweights, dbiases, dweight, dbias, groups, columns, M: tl.constexpr, N: tl.constexpr):
    """Sums over the groups of ``layer_norm_backward_kernel``."""
    column = tl.program_id(0) * N + tl.arange(0, N)
    weights, biases = tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32)
    for first in range(0, groups, M):
        group = first + tl.arange(0, M)
        inside = (group < groups)[:, None] & (column < columns)[None, :]
        place = group[:, None] * columns + column[None, :]
        weights += tl.load(dweights + place, mask=inside, other=0.0)
        biases += tl.load(dbiases + place, mask=inside, other=0.0)
    tl.store(dweight + column, tl.sum(weights, 0), mask=column < columns)
    tl.store(dbias + column, tl.sum(biases, 0), mask=column < columns)


@triton.jit
def product_of_tile(
    a, b, out, tile, m, n, k, a_row, b_inner, b_outer,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of ``a @ b``; groups of row tiles walk through the column tiles together."""
    column_tiles = tl.cdiv(n, N)
    first = tile // (GROUP * column_tiles) * GROUP
    size = tl.minimum(tl.cdiv(m, M) - first, GROUP)
    within = tile % (GROUP * column_tiles)
    rows = ((first + within % size) * M + tl.arange(0, M)) % m
    columns = (within // size * N + tl.arange(0, N)) % n
    inner = tl.arange(0, K)
    a_tile = a + rows[:, None] * a_row + inner[None, :]
    b_tile = b + inner[:, None] * b_inner + columns[None, :] * b_outer
    total = tl.zeros((M, N), dtype=tl.float32)
    for step in range(tl.cdiv(k, K)):
        left = k - step * K
        total = tl.dot(
            tl.load(a_tile, mask=inner[None, :] < left, other=0.0),
            tl.load(b_tile, mask=inner[:, None] < left, other=0.0),
            total,
        )
        a_tile += K
        b_tile += K * b_inner
    out_rows = (first + within % size) * M + tl.arange(0, M)
    out_columns = within // size * N + tl.arange(0, N)
    inside = (out_rows < m)[:, None] & (out_columns < n)[None, :]
    tl.store(out + out_rows[:, None] * n + out_columns[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def matmul_kernel(
    a, b, out, m, n, k, a_row, b_inner, b_outer,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A program for each tile."""
    product_of_tile(a, b, out, tl.program_id(0), m, n, k, a_row, b_inner, b_outer, M, N, K, GROUP)


@triton.jit
def persistent_matmul_kernel(
    a, b, out, m, n, k, a_row, b_inner, b_outer,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Programs stay and take tiles in turn."""
    for tile in tl.range(tl.program_id(0), tl.cdiv(m, M) * tl.cdiv(n, N), tl.num_programs(0), flatten=True):
        product_of_tile(a, b, out, tile, m, n, k, a_row, b_inner, b_outer, M, N, K, GROUP)


@triton.jit
def attention_kernel(
    q, k, v, out, length, scale,
    WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """FlashAttention's forward pass of one head and M queries; heads lie one behind the other."""
    head = tl.program_id(1).to(tl.int64) * length * WIDTH
    rows, keys, channels = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, N), tl.arange(0, WIDTH)
    query = tl.load(q + head + rows[:, None] * WIDTH + channels[None, :])
    key = k + head + channels[:, None] + keys[None, :] * WIDTH
    value = v + head + keys[:, None] * WIDTH + channels[None, :]
    peak, total = tl.full((M,), -float("inf"), tl.float32), tl.zeros((M,), tl.float32)
    mean = tl.zeros((M, WIDTH), tl.float32)
    full = tl.program_id(0) * M if CAUSAL else length
    for _ in range(0, full, N):
        scores = tl.dot(query, tl.load(key))
        peak, total, mean = _with_scores(scores * scale, peak, total, mean, tl.load(value))
        key += N * WIDTH
        value += N * WIDTH
    if CAUSAL:
        for first in range(full, full + M, N):
            scores = tl.dot(query, tl.load(key)) * scale
            scores = tl.where(rows[:, None] >= (first + keys)[None, :], scores, -1e6)
            peak, total, mean = _with_scores(scores, peak, total, mean, tl.load(value))
            key += N * WIDTH
            value += N * WIDTH
    tl.store(out + head + rows[:, None] * WIDTH + channels[None, :], (mean / total[:, None]).to(out.dtype.element_ty))


@triton.jit
def _with_scores(scores, peak, total, mean, value):
    """Softmax goes on over one more tile of keys."""
    higher = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrunk = tl.exp2(peak - higher)
    mean = tl.dot(weights.to(value.dtype), value, mean * shrunk[:, None])
    return higher, total * shrunk + tl.sum(weights, 1), mean
