"""Keys and values, or queries too, in one tensor: the same results, and gradients that nobody need concatenate."""

from functools import partial

import pytest
import torch
from mutation import broken
from operators import names_of_all_operators
from torch.utils.checkpoint import checkpoint

import crossmae_kernels as ck
from crossmae_kernels.testing import poisoned_allocations


def kvpacked(query, key, value, heads, ids, scale, impl="triton", pack=torch.cat):
    return ck.cross_attention_kvpacked(query, pack([key, value], -1), heads, ids, scale, impl)


def qkvpacked(query, key, value, heads, ids, scale, impl="triton", pack=torch.cat):
    return ck.self_attention_qkvpacked(pack([query, key, value], -1), heads, scale, impl)


# What is packed, queries, keys (few and many), rows of the table.
CASES = [
    (kvpacked, 13, 20, 0),
    (kvpacked, 13, 20, 7),
    (kvpacked, 13, 140, 0),
    (kvpacked, 13, 140, 7),
    (qkvpacked, 20, 20, 0),
    (qkvpacked, 140, 140, 0),
]


def parametrized(cases):
    return pytest.mark.parametrize(
        ("packed", "queries", "keys", "table"), cases, ids=lambda v: v.__name__ if callable(v) else str(v)
    )


cases = parametrized(CASES)
# In float32 70 keys are many: rows of scores no longer fit on chip.
float32_cases = parametrized([tuple(70 if part == 140 else part for part in case) for case in CASES])


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.budget
@cases
def test_output_and_all_gradients_keep_to_the_budget(problem, place, packed, queries, keys, table):
    task = problem(queries, keys, 2, 24, table)
    task.judge(packed, *place)


@cases
def test_reference_follows_the_definition(problem, packed, queries, keys, table):
    task = problem(queries, keys, 2, 16, table, scale=0.3)
    found = task.solve(partial(packed, impl="reference"), "cpu", torch.float64)
    for ours, truth in zip(found, task.exact(torch.float64), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


# How the packed tensor lies in memory.
LAYOUTS = {
    "slice": lambda t: torch.cat([t, t], -1).chunk(2, -1)[1],
    "tokens first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "strided last dimension": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
}


@float32_cases
def test_packing_and_layouts_change_nothing(problem, device, packed, queries, keys, table):
    task = problem(queries, keys, 2, 16, table)
    plain = task.fused(device, torch.float32)
    assert equal(task.solve(packed, device, torch.float32), plain)
    for layout in LAYOUTS.values():
        strided = partial(packed, pack=lambda tensors, dim, layout=layout: layout(torch.cat(tensors, dim)))
        assert equal(task.solve(strided, device, torch.float32), plain)


@float32_cases
def test_checkpointing_changes_nothing(problem, device, packed, queries, keys, table):
    task = problem(queries, keys, 2, 16, table)
    call = partial(checkpoint, packed, use_reentrant=False)
    assert equal(task.solve(call, device, torch.float32), task.fused(device, torch.float32))


def leaves_of(task, packed, device, dtype):
    """The packed call with its own tensors as leaves, which come first."""
    query, key, value = (t.detach() for t in task.arguments(device, dtype))
    ids = None if task.ids is None else task.ids.to(device)
    if packed is qkvpacked:
        leaves = [torch.cat([query, key, value], -1)]
        call = partial(ck.self_attention_qkvpacked, num_heads=task.heads, impl="triton")
    else:
        leaves = [query, torch.cat([key, value], -1)]
        call = partial(ck.cross_attention_kvpacked, num_heads=task.heads, query_ids=ids, impl="triton")
    return call, [leaf.requires_grad_() for leaf in leaves]


@float32_cases
def test_one_operator_in_either_direction_and_nothing_else(problem, device, packed, queries, keys, table):
    call, leaves = leaves_of(problem(queries, keys, 2, 16, table), packed, device, torch.float32)
    upstream = torch.randn(2, queries, 32, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = call(*leaves)
    with names_of_all_operators() as backward:
        gradients = torch.autograd.grad(out, leaves, upstream)
    assert backward == ["crossmae_kernels::cross_attention_backward"]
    assert all(gradient.is_contiguous() for gradient in gradients)
    assert {t.data_ptr() for t in leaves} <= {t.data_ptr() for t in saved}
    # Of many keys also ids, the output and a statistic.
    assert len(saved) == len(leaves) + (table > 0) + 2 * (keys > 64)


@float32_cases
def test_a_second_backward_expanded_gradients_and_frozen_tensors(problem, device, packed, queries, keys, table):
    call, leaves = leaves_of(problem(queries, keys, 2, 16, table), packed, device, torch.float32)
    before = [leaf.detach().clone() for leaf in leaves]
    out, upstream = call(*leaves), torch.randn(1, queries, 1, device=device).expand(2, -1, 32)
    gradients = torch.autograd.grad(out, leaves, upstream.contiguous(), retain_graph=True)
    assert equal(torch.autograd.grad(out, leaves, upstream), gradients)
    assert equal([leaf.detach() for leaf in leaves], before)
    for frozen in range(len(leaves)) if len(leaves) > 1 else []:
        some = [leaf.detach().requires_grad_(place != frozen) for place, leaf in enumerate(leaves)]
        call(*some).backward(upstream)
        assert some[frozen].grad is None
        assert torch.equal(some[1 - frozen].grad, gradients[1 - frozen])


@cases
def test_autocast_is_the_same_as_casting(problem, device, packed, queries, keys, table):
    task = problem(queries, keys, 2, 16, table)
    call, leaves = leaves_of(task, packed, device, torch.float32)
    with torch.autocast(device, torch.float16):
        out = call(*leaves)
    explicit = call(*(leaf.half() for leaf in leaves))
    assert out.dtype == torch.float16
    assert torch.equal(out, explicit)
    upstream = task.upstream.to(device)
    assert equal(*(torch.autograd.grad(result, leaves, upstream) for result in (out, explicit)))


# PyTorch looks at the gradients of its own intermediate tensors here.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@float32_cases
def test_opcheck_and_compilation(problem, device, packed, queries, keys, table):
    task = problem(queries, keys, 2, 16, table)
    call, leaves = leaves_of(task, packed, device, torch.float32)
    ids = None if task.ids is None else task.ids.to(device)
    arguments = (*leaves, *[None] * (3 - len(leaves)), ids, 2, 0.25)
    results = torch.library.opcheck(torch.ops.crossmae_kernels.cross_attention, arguments)
    assert set(results.values()) == {"SUCCESS"}
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager" if device == "cpu" else "inductor", fullgraph=True)
    upstream = task.upstream.to(device, torch.float32)
    ours, theirs = (
        [out, *torch.autograd.grad(out, leaves, upstream)] for out in (compiled(*leaves), call(*leaves))
    )  # fmt: skip
    assert equal(ours, theirs)


@pytest.mark.parametrize("keys", [7, 140])
def test_empty_batches_and_no_queries(device, keys):
    for batch, queries, table in ((0, 5, 0), (0, 5, 4), (2, 0, 0), (2, 0, 4)):
        query = torch.randn(*((table,) if table else (batch, queries)), 32, device=device, requires_grad=True)
        pair = torch.randn(batch, keys, 64, device=device, requires_grad=True)
        ids = torch.zeros(batch, queries, dtype=torch.int64, device=device) if table else None
        with poisoned_allocations():
            out = ck.cross_attention_kvpacked(query, pair, 2, ids, impl="triton")
            out.sum().backward()
        assert out.shape == (batch, queries, 32)
        assert equal([query.grad, pair.grad], [torch.zeros_like(query), torch.zeros_like(pair)])
    triple = torch.randn(0, keys, 96, device=device, requires_grad=True)
    ck.self_attention_qkvpacked(triple, 2, impl="triton").sum().backward()
    assert triple.grad.shape == triple.shape


X = torch.randn(2, 5, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ck.cross_attention_kvpacked(X, X, 2), r"kvpacked: key_value must have shape \(B, K, 64\).*got \(2, 5"),
        (lambda: ck.cross_attention_kvpacked(X, torch.randn(2, 0, 64), 2), "at least one key"),
        (lambda: ck.cross_attention_kvpacked(X, torch.randn(2, 3, 64), 3), "num_heads must divide the width 32, got 3"),
        (lambda: ck.self_attention_qkvpacked(X, 2), "three tensors of one width, got 32 columns"),
        (lambda: ck.self_attention_qkvpacked(torch.randn(2, 5, 96), 3), "num_heads must divide the width 32, got 3"),
        (lambda: ck.self_attention_qkvpacked(torch.randn(2, 0, 96), 2), "at least one token"),
        (lambda: ck.self_attention_qkvpacked(X[0], 2), r"query_key_value must have shape \(B, T, W\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("num_keys * DKV_ROW", "num_keys * HEADS * HEAD_DIM"),
        ("keys, DKV_ROW,", "keys, HEADS * HEAD_DIM,"),
        ("num_queries * DQ_ROW", "num_queries * HEADS * HEAD_DIM"),
        ("rows, DQ_ROW,", "rows, HEADS * HEAD_DIM,"),
    ],
)
@pytest.mark.parametrize("keys", [20, 70])
def test_rows_in_the_wrong_places_are_noticed(problem, device, tmp_path, keys, good, bad):
    task = problem(keys, keys, 2, 16)
    plain = task.fused(device, torch.float32)
    with broken("crossmae_kernels.cross_attention", tmp_path, good, bad), poisoned_allocations():
        assert equal(task.fused(device, torch.float32), plain)
        assert not equal(task.solve(qkvpacked, device, torch.float32), plain)
