"""The kernels against the definition in float64, with the error budget."""

import pytest
import torch

import crossmae_kernels as ck
from crossmae_kernels.testing import poisoned_allocations

# Queries, keys, heads, head width, rows of the table (0: dense queries), images.
PROBLEMS = [
    (49, 50, 2, 32, 0, 2),
    (49, 50, 3, 32, 40, 2),
    (147, 50, 2, 16, 0, 1),
    (147, 50, 1, 64, 30, 2),
    (64, 65, 2, 80, 0, 1),
    (64, 65, 1, 32, 9, 2),
    (40, 128, 1, 64, 0, 1),
    (20, 33, 2, 24, 11, 1),
    (33, 17, 1, 128, 0, 2),
    (147, 197, 1, 32, 0, 2),
    (147, 197, 2, 16, 50, 1),
    (65, 129, 1, 80, 0, 1),
    (17, 130, 1, 128, 5, 2),
    (1, 1, 2, 16, 0, 1),
    (1, 1, 1, 32, 3, 3),
    # Several blocks of queries and of keys, whatever their size.
    (140, 389, 1, 64, 0, 1),
    (140, 389, 1, 16, 100, 1),
]


@pytest.mark.budget
@pytest.mark.parametrize(
    "shape", PROBLEMS, ids=lambda s: f"Q{s[0]}-K{s[1]}-{s[2]}x{s[3]}-{'table' if s[4] else 'dense'}"
)
def test_output_and_all_gradients_keep_to_the_budget(problem, kernels, place, shape):
    queries, keys, heads, head_width, table, batch = shape
    task = problem(queries, keys, heads, head_width, table, batch)
    task.judge(kernels, *place)


@pytest.mark.budget
@pytest.mark.parametrize("keys", [21, 140])
def test_a_scale_of_ones_own_and_ids_in_32_bits(problem, kernels, place, keys):
    task = problem(30, keys, 2, 16, table=7, ids_dtype=torch.int32, scale=0.7)
    task.judge(kernels, *place)


@pytest.mark.budget
@pytest.mark.parametrize("keys", [50, 130])
def test_large_scores_neither_overflow_nor_vanish(problem, kernels, place, keys):
    task = problem(49, keys, 1, 32)
    task.query, task.key = 10 * task.query, 10 * task.key
    task.judge(kernels, *place)


def _equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("table", [0, 8])
@pytest.mark.parametrize("keys", [20, 140])
def test_results_repeat_bitwise(problem, place, keys, table):
    task = problem(40, keys, 2, 16, table)
    assert _equal(task.fused(*place), task.fused(*place))


@pytest.mark.parametrize("keys", [20, 140])
def test_a_second_backward_equals_the_first_and_leaves_saved_tensors_alone(problem, place, keys):
    task = problem(20, keys, 2, 16)
    device, dtype = place
    inputs = task.arguments(device, dtype)
    before = [t.detach().clone() for t in inputs]
    out = ck.cross_attention(*inputs, 2, impl="triton")
    kept = out.detach().clone()
    upstream = task.upstream.to(device, dtype)
    first = torch.autograd.grad(out, inputs, upstream, retain_graph=True)
    second = torch.autograd.grad(out, inputs, upstream)
    assert _equal(first, second)
    assert _equal([*(t.detach() for t in inputs), out.detach()], [*before, kept])


@pytest.mark.parametrize("keys", [20, 140])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_frozen_inputs_get_no_gradient_and_change_no_other(problem, device, keys, wanted):
    task = problem(20, keys, 1, 16, table=6)
    _, *gradients = task.fused(device, torch.float32)
    inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(task.arguments(device, torch.float32))]
    out = ck.cross_attention(*inputs, 1, task.ids.to(device), impl="triton")
    out.backward(task.upstream.to(device, torch.float32))
    for i, (leaf, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        assert (leaf.grad is None) == (i not in wanted)
        assert leaf.grad is None or torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("keys", [20, 140])
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(lambda t: torch.cat([t, t], -1).chunk(2, -1)[1], id="slice of a projection"),
        pytest.param(lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), id="sequence first"),
        pytest.param(lambda t: t.repeat_interleave(2, 1)[:, ::2], id="every other row"),
        pytest.param(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), id="strided last dimension"),
    ],
)
def test_layouts_change_nothing(problem, device, keys, layout):
    task = problem(20, keys, 2, 16)
    out, *gradients = task.fused(device, torch.float32)

    def strided(query, key, value, *others):
        return ck.cross_attention(layout(query), layout(key), layout(value), *others, impl="triton")

    assert _equal(task.solve(strided, device, torch.float32), [out, *gradients])


@pytest.mark.parametrize("keys", [20, 140])
@pytest.mark.parametrize("upstream", [(1, 1, 1), (2, 1, 32), (1, 20, 32)], ids=str)
def test_expanded_upstream_gradients(problem, device, keys, upstream):
    task = problem(20, keys, 2, 16)
    inputs = task.arguments(device, torch.float32)
    gradient = torch.randn(upstream, device=device).expand(2, 20, 32)
    out = ck.cross_attention(*inputs, 2, impl="triton")
    expanded = torch.autograd.grad(out, inputs, gradient, retain_graph=True)
    assert _equal(expanded, torch.autograd.grad(out, inputs, gradient.contiguous()))


@pytest.mark.parametrize(("batch", "queries", "table"), [(0, 5, 0), (0, 5, 4), (2, 0, 0), (2, 0, 4)])
def test_empty_batches_and_no_queries(device, batch, queries, table):
    query = torch.randn(*((table,) if table else (batch, queries)), 32, device=device, requires_grad=True)
    key, value = (torch.randn(batch, 7, 32, device=device, requires_grad=True) for _ in range(2))
    ids = torch.zeros(batch, queries, dtype=torch.int64, device=device) if table else None
    with poisoned_allocations():
        out = ck.cross_attention(query, key, value, 2, ids, impl="triton")
        out.sum().backward()
    assert out.shape == (batch, queries, 32)
    for leaf in (query, key, value):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


# The interpreter warns of what is wanted here.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("keys", [20, 140])
def test_rows_with_ids_out_of_range_are_not_read_and_show_as_nan(problem, device, keys):
    # Straight to the operator: on a CPU the public function would raise.
    task = problem(5, keys, 2, 16, table=4)
    query, key, value = (t.detach() for t in task.arguments(device, torch.float32))
    ids = task.ids.to(device)
    good, _ = torch.ops.crossmae_kernels.cross_attention(query, key, value, ids, 2, 0.25)
    ids = ids.clone()
    ids[0, 1], ids[1, 3] = -1, 4
    bad, _ = torch.ops.crossmae_kernels.cross_attention(query, key, value, ids, 2, 0.25)
    lost = torch.zeros_like(bad, dtype=torch.bool)
    lost[0, 1] = lost[1, 3] = True
    assert torch.equal(bad.isnan(), lost)
    assert torch.equal(bad[~lost], good[~lost])


@pytest.mark.parametrize("keys", [20, 140])
def test_an_id_may_name_the_last_row_of_a_table_in_any_layout(problem, device, keys):
    task = problem(12, keys, 2, 16, table=4)
    task.ids[:, ::2] = 3

    def strided(query, key, value, heads, ids, scale):
        ids = ids.t().contiguous().t()
        return ck.cross_attention(query.t().contiguous().t(), key, value, heads, ids, scale, impl="triton")

    assert _equal(task.solve(strided, device, torch.float32), task.fused(device, torch.float32))
