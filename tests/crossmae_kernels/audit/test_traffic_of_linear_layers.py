"""What the kernels of the linear layers ask of memory, to the byte; products of the library's are not counted."""

import pytest
import torch

import crossmae_kernels as ck
from crossmae_kernels.runtime.dispatch import form_of

ROWS, WIDTH, HIDDEN = 256, 128, 512

# A pass over the residual stream in float32, over rows of 16 bits, over a statistic of each row, over a weight.
STREAM, LOW, STATISTIC, WEIGHT = 4 * ROWS * WIDTH, 2 * ROWS * WIDTH, 4 * ROWS, 2 * WIDTH * HIDDEN
HIDDEN_LAYER = 2 * ROWS * HIDDEN


@pytest.fixture
def measured(interpreter):
    """Traffic of forward and backward pass."""

    def measure(call, *leaves):
        from crossmae_kernels.audit.traffic import count_traffic

        with torch.autocast("cpu", torch.float16), count_traffic() as forward:
            out = call(*leaves)
        with count_traffic() as backward:
            torch.autograd.grad(out, leaves, torch.randn_like(out))
        return forward, backward

    return measure


def leaves(*shapes):
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def mlp(policy):
    def call(x, w1, b1, w2, b2):
        return ck.mlp(x, None, None, w1, b1, w2, b2, hidden=policy, impl="triton")

    return call


def mlp_leaves():
    return leaves((ROWS, WIDTH), (HIDDEN, WIDTH), HIDDEN, (WIDTH, HIDDEN), WIDTH)


# Rows of GELU's backward pass, or of a sum over rows, that share a program.
TILE = 128


def added_up(tiles, width):
    """What a sum of tiles in float32 reads and writes."""
    return (tiles + 1) * 4 * width


# What comes back in float32 is read once to be cast and summed for a bias.
CAST_AND_SUM = STREAM + LOW + ROWS // TILE * 4 * WIDTH + added_up(ROWS // TILE, WIDTH)


@pytest.mark.parametrize(("policy", "kept"), [("recompute", 0), ("save", HIDDEN_LAYER)])
def test_mlp_in_one_kernel(measured, policy, kept):
    with form_of("mlp", "single"):
        forward, _ = measured(mlp(policy), *mlp_leaves())
    tiles = ROWS // TILE
    # x for the norm, and again from L2 for the residual; both weights for every tile of rows. A bias that no norm is
    # folded into is read as it is, in float32.
    assert forward.loaded == 2 * STREAM + tiles * (2 * (2 * WIDTH * HIDDEN + HIDDEN) + 4 * WIDTH)
    assert forward.stored == STREAM + LOW + STATISTIC + kept
    # No padding: multiply-accumulates of both products.
    assert forward.flops == 2 * 2 * ROWS * WIDTH * HIDDEN


@pytest.mark.parametrize(("policy", "kept"), [("recompute", 0), ("save", HIDDEN_LAYER)])
def test_mlp_in_tiles(measured, policy, kept):
    with form_of("mlp", "tiled"), form_of("mlp_backward", "tiled"):
        forward, backward = measured(mlp(policy), *mlp_leaves())
    tiles = ROWS // TILE
    norm = STREAM + LOW + STATISTIC
    # Every column tile reads all rows, every row tile the whole weight.
    fc1 = HIDDEN // 128 * LOW + tiles * (WEIGHT + 2 * HIDDEN) + HIDDEN_LAYER
    fc2 = HIDDEN_LAYER + tiles * (WEIGHT + 4 * WIDTH) + 2 * STREAM
    assert forward.bytes == norm + fc1 + fc2 + kept
    assert forward.flops == 2 * 2 * ROWS * WIDTH * HIDDEN
    products, columns = (1, 128) if policy == "save" else (2, 64)
    hidden = products * (HIDDEN // columns * LOW + tiles * WEIGHT) + (kept or tiles * 2 * HIDDEN)
    # The hidden layer's gradient and its activation, and sums of columns.
    hidden += 2 * HIDDEN_LAYER + tiles * 4 * HIDDEN + added_up(tiles, HIDDEN)
    assert backward.bytes == CAST_AND_SUM + hidden + 2 * LOW + STATISTIC + 2 * STREAM
    assert backward.flops == products * 2 * ROWS * WIDTH * HIDDEN


def test_mlp_with_the_librarys_products(measured):
    with form_of("mlp", "library"), form_of("mlp_backward", "library"):
        forward, backward = measured(mlp("recompute"), *mlp_leaves())
    assert forward.bytes == STREAM + LOW + STATISTIC
    # GELU's backward pass reads the layer and its gradient, and writes both; then the norm's.
    hidden = 4 * HIDDEN_LAYER + ROWS // 32 * 4 * HIDDEN + added_up(ROWS // 32, HIDDEN)
    assert backward.bytes == CAST_AND_SUM + hidden + 2 * LOW + STATISTIC + 2 * STREAM


def test_projections(measured):
    x, weight, bias = leaves((ROWS, WIDTH), (WIDTH, WIDTH), WIDTH)
    # A norm in front: one pass there and one back, whoever multiplies.
    forward, backward = measured(lambda *t: ck.norm_linear(*t, impl="triton"), x, weight, bias)
    assert forward.bytes == STREAM + LOW + STATISTIC
    assert backward.bytes == 2 * LOW + STATISTIC + STREAM
    # A residual behind: in the product's epilogue.
    (residual,) = leaves((ROWS, WIDTH))
    forward, backward = measured(lambda *t: ck.linear_residual(*t, impl="triton"), x, weight, bias, residual)
    assert forward.bytes == LOW + ROWS // TILE * (2 * WIDTH * WIDTH + 4 * WIDTH) + 2 * STREAM
    assert backward.bytes == CAST_AND_SUM
