"""What each op says of itself: a dtype that is not served, mixed dtypes, and the report that asks every op."""

import re
import sys

import pytest
import torch
from operators import names_of_operators

import crossmae_kernels as ck
from crossmae_kernels import info
from crossmae_kernels.runtime.interpreter import _bfloat16_refusals

CPU = torch.device("cpu")
LINE = "bfloat16 in Triton's interpreter needs ml-dtypes: pip install 'crossmae-kernels[interpreter]'"
BFLOAT16 = rf"^\w+: impl='triton' cannot serve this call: {re.escape(LINE)}$"


@pytest.fixture(autouse=True)
def _interpreter(interpreter, monkeypatch):
    """Nothing here is asked of a GPU, and bfloat16 is refused."""
    _bfloat16_refusals.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    yield
    _bfloat16_refusals.cache_clear()


@pytest.mark.parametrize("op", ck.__all__)
def test_the_interpreter_refuses_bfloat16_in_one_line(op):
    with pytest.raises(RuntimeError, match=BFLOAT16):
        info.call_kernels(op, CPU, torch.bfloat16)


# These two compute in float32 under autocast too.
@pytest.mark.parametrize("op", sorted(set(ck.__all__) - {"fold_norm", "patch_loss"}))
def test_so_it_does_where_autocast_brings_bfloat16(op):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=BFLOAT16):
        info.call_kernels(op, CPU, torch.float32)


X, W, V = torch.ones(2, 3, 8), torch.ones(8, 8), torch.ones(8)
IMAGES, IDS = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, dtype=torch.int64)
STATISTICS = torch.zeros(3), torch.ones(3)
PREDICTION = torch.ones(2, 3, 12)

# By name, the dtype of autocast, if any, and a call of which one part is bfloat16.
MIXED = {
    "bytes": (torch.bfloat16, lambda: ck.gather_patches(IMAGES.byte(), IDS, 2, *STATISTICS, impl="triton")),
    "images alone": (torch.float16, lambda: ck.gather_patches(IMAGES.bfloat16(), IDS, 2, impl="triton")),
    "prediction": (None, lambda: ck.patch_loss(PREDICTION.bfloat16(), IMAGES, IDS, 2, True, impl="triton")),
    "prediction of bytes": (
        None, lambda: ck.patch_loss(PREDICTION.bfloat16(), IMAGES.byte(), IDS, 2, True, *STATISTICS, impl="triton")
    ),
    "images": (None, lambda: ck.patch_loss(PREDICTION, IMAGES.bfloat16(), IDS, 2, True, impl="triton")),
    "result of a fold": (None, lambda: ck.fold_norm(W, V, V, V, torch.bfloat16, impl="triton")),
    "weight of a fold": (None, lambda: ck.fold_norm(W.bfloat16(), None, None, None, torch.float32, impl="triton")),
    "norm of a fold": (torch.float16, lambda: ck.fold_norm(W, V, V, V.bfloat16(), impl="triton")),
    "stream": (torch.bfloat16, lambda: ck.norm_linear(X, W, V, impl="triton")),
    "norm of a layer": (torch.float16, lambda: ck.norm_linear(X, W, V, V.bfloat16(), impl="triton")),
    "bias of an MLP": (torch.float16, lambda: ck.mlp(X, V, V, W, V.bfloat16(), W, V, impl="triton")),
    "residual": (torch.bfloat16, lambda: ck.linear_residual(X.half(), W, V, X, impl="triton")),
    "maps": (torch.float16, lambda: ck.mix_feature_maps([X.bfloat16()], W[:, :1], impl="triton")),
    "mixing weight": (torch.bfloat16, lambda: ck.mix_feature_maps([X], W[:, :1], impl="triton")),
    "projection": (
        torch.float16,
        lambda: ck.project_feature_maps([X], V[:1, None], W[:1], W[:1], [W.bfloat16()], [V], impl="triton"),
    ),
    "table": (torch.bfloat16, lambda: ck.cross_attention(W, X, X, 2, IDS, impl="triton")),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_so_it_does_where_a_part_of_a_call_is_bfloat16(name):
    autocast, call = MIXED[name]
    with torch.autocast("cpu", autocast, enabled=autocast is not None), pytest.raises(RuntimeError) as refused:
        call()
    assert str(refused.value).count(LINE) == 1
    assert "\n" not in str(refused.value)
    # By the op itself, before it starts on others that it is made of.
    assert str(refused.value).partition(":")[0] in call.__code__.co_names


def test_left_to_itself_a_call_in_bfloat16_takes_the_reference():
    leaf = X.bfloat16().requires_grad_()
    with names_of_operators() as called:
        ck.norm_linear(leaf, W.bfloat16(), V.bfloat16()).sum().backward()
    assert called == []


def test_what_autocast_rounds_to_float16_before_a_kernel_reads_it_is_served():
    with torch.autocast("cpu", torch.float16):
        out = ck.cross_attention(X.bfloat16(), X, X, 2, impl="triton")
        assert torch.equal(out, ck.cross_attention(X, X, X, 2, impl="triton"))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: ck.cross_attention(X, X, X.double(), 2, impl="triton"), "these tensors are torch.float64"),
        (lambda: ck.mix_feature_maps([X], W[:, :1].double(), impl="triton"), "these tensors are torch.float64"),
        (lambda: ck.mix_feature_maps([X, X.half()], W[:, :2], impl="triton"), "maps of one dtype, but these are torch"),
        (
            lambda: ck.project_feature_maps([X], torch.ones(2, 1), W[:2], W[:2], [W, W.half()], [V, V], impl="triton"),
            "weights of one dtype, but these are torch.float16 and torch.float32",
        ),
    ],
)
def test_mixed_dtypes_that_autocast_lets_through_are_refused(call, reason):
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match=reason):
        call()


def test_the_report_asks_every_public_op_itself(monkeypatch):
    monkeypatch.setattr(sys.modules["crossmae_kernels.cross_attention.config"], "WIDEST_HEAD", 16)
    attention = {"cross_attention", "cross_attention_kvpacked", "self_attention_qkvpacked"}
    for op in ck.__all__:
        answer = info.served_by(op, CPU, torch.float32)
        assert ("heads of up to 16 channels, but these have 32" in answer) == (op in attention)


def test_the_report_has_a_line_for_the_dtypes_that_are_served_alike():
    lines = [line for line in info.rows_of(CPU) if line.startswith(("  mlp ", "   "))]
    at = next(place for place, line in enumerate(lines) if line.startswith("  mlp "))
    assert lines[at].split(maxsplit=3)[1:3] == ["float32,", "float16"]
    assert lines[at + 1].split(maxsplit=1)[0] == "bfloat16"
    assert lines[at + 1].endswith(f"reference: {LINE}")
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_an_error_of_another_kind_is_no_refusal(monkeypatch):
    def broken(*arguments, **others):
        raise RuntimeError("broken")

    monkeypatch.setattr(ck, "mlp", broken)
    with pytest.raises(RuntimeError, match="broken"):
        info.served_by("mlp", CPU, torch.float32)
