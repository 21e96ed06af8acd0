"""Kernels move each byte once and multiply little more than they need."""

import pytest
import torch

import crossmae_kernels as ck

BATCH, QUERIES, KEYS, HEADS, HEAD_WIDTH = 2, 49, 50, 16, 32
WIDTH = HEADS * HEAD_WIDTH

# A matrix product of scores with one of q, k, v, dout or back.
PRODUCT = 2 * BATCH * HEADS * QUERIES * KEYS * HEAD_WIDTH


@pytest.fixture
def measured(interpreter):
    """Traffic of forward and backward pass, with dense queries or a table."""

    def measure(dtype, table):
        from crossmae_kernels.audit.traffic import count_traffic

        query = torch.randn(*((196,) if table else (BATCH, QUERIES)), WIDTH, dtype=dtype, requires_grad=True)
        key, value = torch.randn(BATCH, KEYS, 2 * WIDTH, dtype=dtype, requires_grad=True).chunk(2, -1)
        ids = torch.stack([torch.randperm(196)[:QUERIES] for _ in range(BATCH)]) if table else None
        with count_traffic() as forward:
            out = ck.cross_attention(query, key, value, HEADS, ids, impl="triton")
        upstream = torch.randn_like(out)
        with count_traffic() as backward:
            torch.autograd.grad(out, (query, key, value), upstream)
        return forward, backward

    return measure


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dense_queries(measured, dtype):
    forward, backward = measured(dtype, table=False)
    queries, keys = (BATCH * rows * WIDTH * dtype.itemsize for rows in (QUERIES, KEYS))
    # q and out, k and v; q, dout and dq, k, v, dk and dv.
    assert forward.bytes <= 1.05 * (2 * queries + 2 * keys)
    assert backward.bytes <= 1.10 * (3 * queries + 4 * keys)
    assert forward.loaded >= queries + 2 * keys
    assert backward.stored == queries + 2 * keys
    # Scores and output; scores, dweights, dv, dq and dk.
    assert 2 * PRODUCT <= forward.flops <= 1.75 * 2 * PRODUCT
    assert 5 * PRODUCT <= backward.flops <= 1.75 * 5 * PRODUCT


def test_table_queries(measured):
    forward, backward = measured(torch.float16, table=True)
    queries, keys, table = (rows * WIDTH * 2 for rows in (BATCH * QUERIES, BATCH * KEYS, 196))
    ids = BATCH * QUERIES * 8
    assert forward.bytes <= 1.05 * (2 * queries + 2 * keys + ids)
    # The gradient of the rows is written, read again in the order of the table, and summed.
    assert backward.bytes <= 1.10 * (3 * queries + 4 * keys + ids + queries + table)
    assert forward.flops <= 1.75 * 2 * PRODUCT
    assert backward.flops <= 1.75 * 5 * PRODUCT


def test_what_is_counted(interpreter):
    from crossmae_kernels.audit.traffic import count_traffic
    from crossmae_kernels.primitives.segmented_sum import segmented_sum

    rows, ids = torch.randn(5, 3), torch.tensor([0, 2, 2, 0, 2])
    with count_traffic() as traffic:
        segmented_sum(rows, ids, 3)
    # Five rows, the order, and two bounds for each of three segments; three sums.
    assert traffic.loaded == 5 * 3 * 4 + 5 * 8 + 3 * 2 * 8
    assert traffic.stored == 3 * 3 * 4
    assert traffic.flops == 0
