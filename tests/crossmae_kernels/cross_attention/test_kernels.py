"""The kernels against the definition in float64, with the error budget."""

import pytest
import torch
from contract import same
from oracles import oracle_of
from seeds import seeded

from crossmae_kernels.testing import Draw, Judge, poisoned_allocations, solve
from crossmae_kernels.testing.problems import cross_attention, cross_attention_kvpacked, self_attention_qkvpacked

# Images, queries, keys, heads, head width, rows of the table (0: dense queries).
PROBLEMS = [
    (2, 49, 50, 3, 32, 40),
    (1, 147, 50, 1, 64, 30),
    (1, 64, 65, 2, 80, 0),
    (1, 40, 128, 1, 64, 0),
    (1, 20, 33, 2, 24, 11),
    (2, 33, 17, 1, 128, 0),
    (1, 65, 129, 1, 80, 0),
    (2, 17, 130, 1, 128, 5),
    (1, 1, 1, 2, 16, 0),
    (3, 1, 1, 1, 32, 3),
    # Several blocks of queries and of keys, whatever their size.
    (1, 140, 197, 2, 16, 50),
    (1, 70, 389, 1, 64, 0),
]


def judge(problem, dtype):
    return Judge(problem, dtype, oracle_of(problem)).check(problem.by("triton"))


@pytest.mark.budget
@pytest.mark.parametrize(
    "shape", PROBLEMS, ids=lambda s: f"Q{s[1]}-K{s[2]}-{s[3]}x{s[4]}-{'table' if s[5] else 'dense'}"
)
def test_output_and_all_gradients_keep_to_the_budget(place, shape):
    device, dtype = place
    judge(cross_attention(Draw(seeded(), device), *shape), dtype)


@pytest.mark.budget
@pytest.mark.parametrize("keys", [21, 140])
def test_a_scale_of_ones_own_and_ids_in_32_bits(place, keys):
    device, dtype = place
    problem = cross_attention(Draw(seeded(), device), 2, 30, keys, 2, 16, table=7, scale=0.7)
    judge(problem.having(query_ids=problem.arguments["query_ids"].int()), dtype)


@pytest.mark.budget
@pytest.mark.parametrize("keys", [50, 130])
def test_large_scores_neither_overflow_nor_vanish(place, keys):
    device, dtype = place
    problem = cross_attention(Draw(seeded(), device), 2, 49, keys, 1, 32)
    judge(problem.having(**{name: 10 * problem.arguments[name] for name in ("query", "key")}), dtype)


@pytest.mark.budget
@pytest.mark.parametrize(("queries", "keys", "table"), [(13, 20, 7), (13, 140, 0)])
def test_keys_and_values_in_one_tensor_and_a_width_that_is_padded(place, queries, keys, table):
    device, dtype = place
    judge(cross_attention_kvpacked(Draw(seeded(), device), 2, queries, keys, 2, 24, table), dtype)


@pytest.mark.budget
@pytest.mark.parametrize("tokens", [20, 130])
def test_all_in_one_tensor_and_a_width_that_is_padded(place, tokens):
    device, dtype = place
    judge(self_attention_qkvpacked(Draw(seeded(), device), 2, tokens, 1 if tokens > 20 else 2, 24), dtype)


@pytest.mark.parametrize("problem", [cross_attention, cross_attention_kvpacked])
@pytest.mark.parametrize("table", [0, 4])
@pytest.mark.parametrize("keys", [7, 67])
def test_no_queries(device, problem, table, keys):
    problem = problem(Draw(device=device), 2, 0, keys, 2, 16, table)
    with poisoned_allocations():
        found = solve(problem, problem.by("triton"), torch.float32)
    assert found["out"].shape == (2, 0, 32)
    assert not any(result.any() for result in found.values())


@pytest.mark.parametrize("keys", [20, 67])
def test_packing_changes_nothing(device, keys):
    problem = cross_attention(Draw(device=device), 2, keys, keys, 1, 16)
    plain = solve(problem, problem.by("triton"), torch.float32)
    kv = cross_attention_kvpacked(Draw(device=device), 2, keys, keys, 1, 16).by("triton")
    qkv = self_attention_qkvpacked(Draw(device=device), 2, keys, 1, 16).by("triton")

    def kvpacked(query, key, value):
        return kv(query, torch.cat([key, value], -1))

    def qkvpacked(query, key, value):
        return qkv(torch.cat([query, key, value], -1))

    for packed in (kvpacked, qkvpacked):
        assert same(solve(problem, packed, torch.float32), plain)
