"""Wrong arguments of every op: one error that names the argument, what came and what was expected."""

import pytest
import torch

import crossmae_kernels as ck

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
    "no maps": (lambda: ck.mix_feature_maps([], W), ValueError, r"at least one feature map"),
    "maps differ": (lambda: ck.mix_feature_maps([X, X[:, :1]], W[:, :2]), ValueError, r"maps\[1\].*\(2, 1, 8\)"),
    "weights per map": (lambda: ck.mix_feature_maps([X], W), ValueError, r"weight must have shape \(n, 1\)"),
    "affine unused": (lambda: ck.mix_feature_maps([X], W[:, :1], W, None, normalize=False), ValueError, r"None where"),
    "activation": (lambda: ck.norm_linear(X, W, activation="relu"), ValueError, r"'gelu' or None, got 'relu'"),
    "linear width": (lambda: ck.norm_linear(X, W[:, :4]), ValueError, r"weight .*I=8.*\(8, 4\)"),
    "residual": (lambda: ck.linear_residual(X, W, None, X[:1]), ValueError, r"residual .*\(2, 3\), got \(1, 3\)"),
    "residual ids": (lambda: ck.linear_residual(X, W, None, TABLE, IDS - 2), ValueError, r"residual_ids.*from -2"),
    "mlp": (lambda: ck.mlp(X, None, None, H, None, H, None), ValueError, r"fc2_weight .*\(16, 8\)"),
    "patch size": (lambda: ck.gather_patches(IMAGES, IDS, 3), ValueError, r"patch_size must divide .*8 x 8, got 3"),
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
