"""Wrong arguments of every op: one error that names the argument, what came and what was expected."""

import inspect
from collections.abc import Sequence
from fractions import Fraction
from math import inf, nan

import numpy
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import crossmae_kernels as ck
from crossmae_kernels.environment import Implementation
from crossmae_kernels.mlp.config import Hidden
from crossmae_kernels.patches.config import Reduction
from crossmae_kernels.projection import Activation

X = torch.randn(2, 3, 8)
IDS = torch.zeros(2, 3, dtype=torch.int64)
TABLE = torch.randn(5, 8)
W, H = torch.randn(8, 8), torch.randn(16, 8)
IMAGES = torch.randn(2, 3, 8, 8)
BYTES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
MEAN_STD = (torch.zeros(3), torch.ones(3))


WRONG = {
    "no tensor": (lambda: ck.cross_attention([1], X, X, 2), TypeError, r"query must be a tensor.*got list"),
    "integer query": (lambda: ck.cross_attention(X.int(), X, X, 2), TypeError, r"query must be floating.*int32"),
    "mixed dtypes": (lambda: ck.cross_attention(X, X.double(), X, 2), TypeError, r"key must be torch.float32.*float64"),
    "mixed devices": (lambda: ck.cross_attention(X, X.to("meta"), X, 2), ValueError, r"key must be on cpu.*meta"),
    "other width": (lambda: ck.cross_attention(X, X[..., :4], X, 2), ValueError, r"key .*D=8.*\(2, 3, 4\)"),
    "value shorter": (lambda: ck.cross_attention(X, X, X[:, :2], 2), ValueError, r"value .*K=3.*\(2, 2, 8\)"),
    "heads": (lambda: ck.cross_attention(X, X, X, 3), ValueError, r"num_heads must divide the width 8, got 3"),
    "no heads": (lambda: ck.cross_attention(X, X, X, 0), ValueError, r"num_heads"),
    "no keys": (lambda: ck.cross_attention(X, X[:, :0], X[:, :0], 2), ValueError, r"at least one key"),
    "float ids": (lambda: ck.cross_attention(TABLE, X, X, 2, IDS.float()), TypeError, r"query_ids must be int64"),
    "negative id": (lambda: ck.cross_attention(TABLE, X, X, 2, IDS - 1), ValueError, r"\[0, 5\), got ids from -1"),
    "large id": (lambda: ck.cross_attention(TABLE, X, X, 2, IDS + 5), ValueError, r"\[0, 5\), got ids from 5 to 5"),
    "ids for dense": (lambda: ck.cross_attention(X, X, X, 2, IDS), ValueError, r"query must have shape \(N, D\)"),
    "implementation": (lambda: ck.cross_attention(X, X, X, 2, impl="fast"), ValueError, r"impl must be one of"),
    "no maps": (lambda: ck.mix_feature_maps([], W), ValueError, r"maps must hold at least one tensor, got none"),
    "maps differ": (lambda: ck.mix_feature_maps([X, X[:, :1]], W[:, :2]), ValueError, r"maps\[1\].*\(2, 1, 8\)"),
    "one fault of two maps": (
        lambda: ck.mix_feature_maps([X.int(), X.int()], W[:, :2]), TypeError,
        r"maps: maps\[0\] must be floating[^;]*int32$",
    ),
    "weights per map": (lambda: ck.mix_feature_maps([X], W), ValueError, r"weight must have shape \(n, 1\)"),
    "affine unused": (lambda: ck.mix_feature_maps([X], W[:, :1], W, None, normalize=False), ValueError, r"must be None with normalize=False"),
    "activation": (lambda: ck.norm_linear(X, W, activation="relu"), ValueError, r"'gelu' or None, got 'relu'"),
    "linear width": (lambda: ck.norm_linear(X, W[:, :4]), ValueError, r"weight .*I=8.*\(8, 4\)"),
    "residual": (lambda: ck.linear_residual(X, W, None, X[:1]), ValueError, r"residual .*\(2, 3\), got \(1, 3\)"),
    "residual ids": (lambda: ck.linear_residual(X, W, None, TABLE, IDS - 2), ValueError, r"residual_ids.*from -2"),
    "mlp": (lambda: ck.mlp(X, None, None, H, None, H, None), ValueError, r"fc2_weight .*\(16, 8\)"),
    "patch size": (lambda: ck.gather_patches(IMAGES, IDS, 3), ValueError, r"patch_size must divide .*8 x 8, got 3"),
    "patch width": (
        lambda: ck.gather_patches(IMAGES, IDS, (4, 3)), ValueError, r"must divide .*8 x 8, got \(4, 3\)"
    ),
    "patch height": (
        lambda: ck.gather_patches(IMAGES, IDS, (0, 4)), ValueError, r"patch_size\[0\] must be a positive integer, got 0"
    ),
    "three sides": (
        lambda: ck.gather_patches(IMAGES, IDS, (4, 4, 4)), TypeError, r"patch_size must be .* integer, got \(4, 4, 4\)"
    ),
    "patch id": (lambda: ck.gather_patches(IMAGES, IDS + 4, 4), ValueError, r"ids must lie in \[0, 4\)"),
    "integer images": (lambda: ck.gather_patches(IMAGES.int(), IDS, 4), TypeError, r"images must be floating.*uint8"),
    "bytes alone": (lambda: ck.gather_patches(BYTES, IDS, 4), TypeError, r"mean must be a tensor.*; std must be"),
    "channels of std": (
        lambda: ck.gather_patches(BYTES, IDS, 4, *MEAN_STD[:1], MEAN_STD[1][:2]), ValueError, r"std .*C=3.*\(2,\)"
    ),
    "dtype of mean": (
        lambda: ck.patch_loss(X, BYTES, IDS, 4, True, MEAN_STD[0].half(), MEAN_STD[1]), TypeError, r"mean .*float32.*16"
    ),
    "mean of floats": (
        lambda: ck.gather_patches(IMAGES, IDS, 4, *MEAN_STD), ValueError, r"mean is for uint8 images.*float32; std is"
    ),
    "reduction": (
        lambda: ck.patch_loss(X, IMAGES, IDS, 4, True, reduction="sum"), ValueError, r"'mean' or 'none', got 'sum'"
    ),
    "prediction": (lambda: ck.patch_loss(X, IMAGES, IDS, 4, True), ValueError, r"prediction .*48.*\(2, 3, 8\)"),
    "nothing predicted": (
        lambda: ck.patch_loss(torch.empty(2, 0, 48), IMAGES, IDS[:, :0], 4, True), ValueError, r"at least one patch"
    ),
    "no image": (
        lambda: ck.patch_loss(torch.empty(0, 3, 48), IMAGES[:0], IDS[:0], 4, True), ValueError, r"at least one image"
    ),
    "no channel": (
        lambda: ck.patch_loss(torch.empty(2, 3, 0), IMAGES[:, :0], IDS, 4, False, reduction="none"),
        ValueError, r"at least one channel",
    ),
    "std of 0": (
        lambda: ck.gather_patches(BYTES, IDS, 4, MEAN_STD[0], torch.tensor([1.0, 0, 1])), ValueError,
        r"std must be positive, got 0$",
    ),
    "std of nan": (
        lambda: ck.patch_loss(torch.randn(2, 3, 48), BYTES, IDS, 4, True, MEAN_STD[0], MEAN_STD[1] * nan), ValueError,
        r"std must be positive, got nan",
    ),
    "weights and rows": (
        lambda: ck.project_feature_maps([X], W[:2, :1], W[:2], W[:2], [W], [W[0]] * 2), ValueError,
        r"weights must hold one tensor for each of 2 rows, got 1$",
    ),
    "one value": (lambda: ck.patch_loss(X[:1, :1, :1], X[:, None], IDS[:1, :1], 1, True), ValueError, r"more than one"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_all_problems_come_in_one_message():
    with pytest.raises(TypeError, match=r"key must be torch.float32.*; value must have shape.*; num_heads"):
        ck.cross_attention(X, X.double(), X[:, :2], 3)


def test_autocast_may_mix_dtypes():
    with torch.autocast("cpu", torch.bfloat16):
        assert ck.norm_linear(X.bfloat16(), W).dtype == torch.bfloat16


# A call of every op with every tensor that it may take.
RIGHT = {
    "cross_attention": {"query": TABLE, "key": X, "value": X, "num_heads": 2, "query_ids": IDS},
    "cross_attention_kvpacked": {"query": TABLE, "key_value": torch.randn(2, 3, 16), "num_heads": 2, "query_ids": IDS},
    "fold_norm": {"weight": H, "bias": H[:, 0], "norm_weight": W[0], "norm_bias": W[0]},
    "gather_patches": {"images": BYTES, "ids": IDS, "patch_size": 4, "mean": MEAN_STD[0], "std": MEAN_STD[1]},
    "linear_residual": {"x": X, "weight": W, "bias": W[0], "residual": TABLE, "residual_ids": IDS},
    "mix_feature_maps": {"maps": [X, X], "weight": W[:, :2], "norm_weight": W, "norm_bias": W},
    "mlp": {
        "x": X, "norm_weight": W[0], "norm_bias": W[0], "fc1_weight": H, "fc1_bias": H[:, 0], "fc2_weight": H.mT,
        "fc2_bias": W[0],
    },
    "norm_linear": {"x": X, "weight": W, "bias": W[0], "norm_weight": W[0], "norm_bias": W[0]},
    "patch_loss": {
        "prediction": torch.randn(2, 3, 48), "images": BYTES, "predicted_ids": IDS, "patch_size": 4, "normalize": True,
        "mean": MEAN_STD[0], "std": MEAN_STD[1],
    },
    "project_feature_maps": {
        "maps": [X, X], "mixing_weight": W[:, :2], "norm_weight": W, "norm_bias": W, "weights": [W] * 8,
        "biases": [W[0]] * 8,
    },
    "self_attention_qkvpacked": {"query_key_value": torch.randn(2, 3, 24), "num_heads": 2},
}  # fmt: skip

EIGHT_BITS = torch.zeros(2, 3, 8).to(torch.float8_e4m3fn)
NO_NUMBERS = ["1", True, (4, 4), torch.ones(()), Fraction(1, 2), 1j, inf, -inf, nan]
# By how a parameter is annotated: values that it must not have.
NOT_OF_KIND = {
    Tensor: [None, 2.0, "x", [1.0], EIGHT_BITS, EIGHT_BITS.to(torch.complex64)],
    Tensor | None: [2.0, "x", [1.0], EIGHT_BITS, EIGHT_BITS.to(torch.complex64)],
    Tensor | Sequence[Tensor]: [None, 2.0, "x", [], [1.0], EIGHT_BITS, [EIGHT_BITS], (x for x in (H, H))],
    Sequence[Tensor]: [None, X, [], [1.0], "x", [EIGHT_BITS], {X}, (x for x in (X, X))],
    int: [None, 2.0, *NO_NUMBERS, 0, -1, torch.tensor([[1, 2], [3, 4]])],
    int | tuple[int, int]: [
        None,
        2.0,
        "1",
        True,
        torch.ones(()),
        nan,
        0,
        -1,
        (4,),
        (4, 4, 4),
        (4.0, 4),
        (4, 0),
        [4, 4],
    ],
    float: [None, *NO_NUMBERS, -1.0, "a" * 1000],
    float | None: NO_NUMBERS,
    bool: [None, 0, 1, 1.0, "no", "True", torch.ones(())],
    Reduction: [None, True, 3, "sum", ["mean"], torch.ones(2)],
    Hidden: [None, True, 3, "keep", ["save"], torch.ones(2)],
    Activation | None: [True, 3, "relu", ["gelu"], torch.nn.GELU()],
    torch.dtype | None: ["float16", float, 16, torch.int32, torch.uint8, torch.complex64, torch.float8_e4m3fn],
    Implementation: [None, True, 3, "cuda", ["auto"], torch.ones(2)],
}
PARAMETERS = [
    (op, name, parameter.annotation)
    for op in ck.__all__
    for name, parameter in inspect.signature(getattr(ck, op)).parameters.items()
]


@pytest.mark.parametrize("op", ck.__all__)
def test_the_right_arguments_are_right(op):
    call = inspect.signature(getattr(ck, op)).bind(**RIGHT[op])
    assert getattr(ck, op)(*call.args, **call.kwargs) is not None


@pytest.mark.parametrize(("op", "name", "kind"), PARAMETERS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_value_of_another_kind_is_named_in_one_line(op, name, kind):
    for value in NOT_OF_KIND[kind]:
        with pytest.raises((TypeError, ValueError)) as refused:
            getattr(ck, op)(**{**RIGHT[op], name: value})
        message = str(refused.value)
        assert message.startswith(f"{op}: {name}"), (value, message)
        assert " must " in message
        assert "got" in message
        assert "\n" not in message
        assert len(message) < 300


@pytest.mark.parametrize("op", ck.__all__)
def test_numbers_and_choices_of_another_kind_come_in_one_message(op):
    wrong = {
        name: NOT_OF_KIND[kind][0]
        for of, name, kind in PARAMETERS
        if of == op and kind is not Implementation and Tensor not in (kind, *getattr(kind, "__args__", ()))
    }
    if wrong:
        with pytest.raises((TypeError, ValueError)) as refused:
            getattr(ck, op)(**{**RIGHT[op], **wrong})
        assert [name for name in wrong if f" {name} must " not in str(refused.value)] == []
    else:
        assert op == "linear_residual"


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_numbers_of_numpy_are_numbers(impl, request):
    if impl == "triton":
        request.getfixturevalue("interpreter")
    for integer, real in ((numpy.int64, numpy.float64), (numpy.int32, numpy.float32)):
        attended = ck.cross_attention(X, X, X, integer(2), scale=real(0.5), impl=impl)
        assert torch.equal(attended, ck.cross_attention(X, X, X, 2, scale=0.5, impl=impl))
        rows = ck.gather_patches(IMAGES, IDS, integer(4), impl=impl)
        assert torch.equal(rows, ck.gather_patches(IMAGES, IDS, 4, impl=impl))
        assert torch.equal(ck.norm_linear(X, W, eps=real(0.5), impl=impl), ck.norm_linear(X, W, eps=0.5, impl=impl))


def numbers_in_use(x, heads, scale, eps, patch_size):
    attended = ck.norm_linear(ck.cross_attention(x, x, x, heads, scale=scale), x.new_ones(8, 8), eps=eps)
    images, ids = x.new_ones(1, 1, 4, 4), x.new_zeros(1, 1, dtype=torch.int64)
    return attended, ck.gather_patches(images, ids, patch_size)


def test_numbers_that_a_compiler_does_not_know():
    torch._dynamo.reset()
    compiled = torch.compile(numbers_in_use, backend="eager", fullgraph=True, dynamic=True)
    for numbers in ((2, 0.5, 1e-6, 2), (4, 1, 0.0, 4)):
        torch.testing.assert_close(compiled(X, *numbers), numbers_in_use(X, *numbers))


def test_symbols():
    def call(x):
        return numbers_in_use(x, x.shape[0], x.shape[0] ** -0.5, x.shape[0] / 7, x.shape[0])

    torch.testing.assert_close(make_fx(call, tracing_mode="symbolic")(X)(X), call(X))


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name, _ in PARAMETERS if name.endswith("ids")])
def test_ids_out_of_range_do_not_wrap_in_compiled_code(op, name):
    def call(ids):
        return getattr(ck, op)(**{**RIGHT[op], name: ids})

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IDS), call(IDS))
    for wrong in (IDS - 1, IDS + 5):
        with pytest.raises(RuntimeError, match=f"{op}: {name} must lie within the table"):
            compiled(wrong)
