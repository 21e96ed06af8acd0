"""What the public functions say to wrong arguments."""

import pytest
import torch

import crossmae_kernels as ck


def _arguments(batch=2, queries=5, keys=7, width=32):
    return {
        "query": torch.randn(batch, queries, width),
        "key": torch.randn(batch, keys, width),
        "value": torch.randn(batch, keys, width),
        "num_heads": 2,
    }


TABLE = {"query": torch.randn(9, 32), "query_ids": torch.zeros(2, 5, dtype=torch.int64)}

WRONG = {
    "key of another width": ({"key": torch.randn(2, 7, 16)}, ValueError, r"key must have shape \(B, K, D\)"),
    "value of another length": ({"value": torch.randn(2, 6, 32)}, ValueError, r"value must have shape \(B, K, D\)"),
    "another batch": ({"query": torch.randn(3, 5, 32)}, ValueError, "key must have shape"),
    "no keys": ({"key": torch.randn(2, 0, 32), "value": torch.randn(2, 0, 32)}, ValueError, "at least one key"),
    "heads that do not divide": ({"num_heads": 5}, ValueError, "num_heads must divide the width 32, got 5"),
    "no heads": ({"num_heads": 0}, ValueError, "num_heads must be a positive integer, got 0"),
    "another dtype": ({"value": torch.randn(2, 7, 32).half()}, TypeError, "value must be torch.float32"),
    "integers": ({"query": torch.zeros(2, 5, 32, dtype=torch.int64)}, TypeError, "query must be floating point"),
    "no tensor": ({"key": [1.0]}, TypeError, "key must be a tensor"),
    "another device": ({"key": torch.empty(2, 7, 32, device="meta")}, ValueError, "key must be on cpu"),
    "ids for dense queries": ({"query_ids": TABLE["query_ids"]}, ValueError, r"query must have shape \(N, D\)"),
    "float ids": ({**TABLE, "query_ids": torch.zeros(2, 5)}, TypeError, "query_ids must be int64 or int32"),
    "negative ids": ({**TABLE, "query_ids": TABLE["query_ids"] - 1}, ValueError, r"must lie in \[0, 9\)"),
    "ids beyond the table": ({**TABLE, "query_ids": TABLE["query_ids"] + 9}, ValueError, "from 9 to 9"),
    "ids of another batch": ({**TABLE, "query_ids": TABLE["query_ids"][:1]}, ValueError, "key must have shape"),
    "an unknown implementation": ({"impl": "cuda"}, ValueError, "impl must be one of auto, triton, reference"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_wrong_arguments_are_named(case, impl):
    changed, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        ck.cross_attention(**{"impl": impl, **_arguments(), **changed})


def test_an_explicit_choice_lists_every_reason_and_never_falls_back(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = {name: a.double() if name != "num_heads" else 1 for name, a in _arguments(width=160).items()}
    with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET=1.*float64.*up to 128 channels, but these have 160"):
        ck.cross_attention(**arguments, impl="triton")
    assert ck.cross_attention(**arguments).dtype == torch.float64


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
def test_wrong_arguments_of_packed_forms_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
