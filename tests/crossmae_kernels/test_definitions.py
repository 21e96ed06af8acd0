"""Every reference op against its definition, written out naively in float64, with gradients by finite differences."""

import math

import pytest
import torch

import crossmae_kernels as ck

SEED = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=SEED).requires_grad_()


def norm(row, weight, bias, eps=1e-6):
    mean = sum(row) / len(row)
    variance = sum((v - mean) ** 2 for v in row) / len(row)
    return [(v - mean) / math.sqrt(variance + eps) * w + b for v, w, b in zip(row, weight, bias, strict=True)]


def dense(row, weight, bias):
    return [sum(v * w for v, w in zip(row, ws, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]


def gelu(row):
    return [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in row]


def add(row, other):
    return [a + b for a, b in zip(row, other, strict=True)]


def values(*tensors):
    return [t.tolist() for t in tensors]


def same(result, expected):
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_cross_attention(gathered, scale):
    batch, queries, keys, heads, width = 2, 3, 4, 2, 6
    q, k, v = randn(5, width) if gathered else randn(batch, queries, width), randn(batch, keys, width), randn(2, 4, 6)
    ids = torch.tensor([[4, 0, 2], [1, 1, 3]]) if gathered else None
    qs, ks, vs = values(q[ids] if gathered else q, k, v)
    head = width // heads
    factor = scale or head**-0.5
    expected = [[[0.0] * width for _ in range(queries)] for _ in range(batch)]
    for b in range(batch):
        for i in range(queries):
            for h in range(heads):
                part = range(h * head, (h + 1) * head)
                weights = [math.exp(factor * sum(qs[b][i][c] * ks[b][j][c] for c in part)) for j in range(keys)]
                for c in part:
                    expected[b][i][c] = sum(w * vs[b][j][c] for j, w in enumerate(weights)) / sum(weights)
    same(ck.cross_attention(q, k, v, heads, query_ids=ids, scale=scale), expected)
    assert torch.autograd.gradcheck(lambda *t: ck.cross_attention(*t, heads, query_ids=ids, scale=scale), (q, k, v))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("maps", [1, 3])
def test_mix_feature_maps(maps, affine):
    blocks, batch, keys, width = 2, 2, 3, 5
    inputs, weight = [randn(batch, keys, width) for _ in range(maps)], randn(blocks, maps)
    gamma, beta = (randn(blocks, width), randn(blocks, width)) if affine else (None, None)
    mix = values(weight)[0]
    xs = values(*inputs)
    plain = [
        [[[sum(mix[n][j] * xs[j][b][t][e] for j in range(maps)) for e in range(width)] for t in range(keys)]
         for b in range(batch)]
        for n in range(blocks)
    ]  # fmt: skip
    ones, zeros = [1.0] * width, [0.0] * width
    normed = [
        [[norm(row, gamma[n].tolist() if affine else ones, beta[n].tolist() if affine else zeros) for row in image]
         for image in plain[n]]
        for n in range(blocks)
    ]  # fmt: skip
    same(ck.mix_feature_maps(inputs, weight, gamma, beta), normed)
    same(ck.mix_feature_maps(inputs, weight, normalize=False), plain)
    affines = (gamma, beta) if affine else ()
    assert torch.autograd.gradcheck(
        lambda w, *t: ck.mix_feature_maps(t[:maps], w, *t[maps:]), (weight, *inputs, *affines)
    )


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("biases", [False, True])
def test_norm_linear(activation, biases):
    x, weight = randn(2, 3, 5), randn(4, 5)
    bias, gamma, beta = (randn(4), randn(5), randn(5)) if biases else (None, None, None)
    parts = values(bias, gamma, beta) if biases else ([0.0] * 4, [1.0] * 5, [0.0] * 5)
    expected = [
        [dense(norm(row, parts[1], parts[2]), weight.tolist(), parts[0]) for row in image] for image in x.tolist()
    ]
    if activation:
        expected = [[gelu(row) for row in image] for image in expected]
    given = (x, weight) + ((bias, gamma, beta) if biases else ())
    same(ck.norm_linear(*given, activation=activation), expected)
    assert torch.autograd.gradcheck(lambda *t: ck.norm_linear(*t, activation=activation), given)


@pytest.mark.parametrize("gathered", [False, True])
def test_linear_residual(gathered):
    x, weight, bias = randn(2, 3, 5), randn(4, 5), randn(4)
    residual = randn(6, 4) if gathered else randn(2, 3, 4)
    ids = torch.tensor([[5, 0, 2], [1, 1, 3]]) if gathered else None
    rows = values(residual[ids] if gathered else residual)[0]
    expected = [
        [add(dense(row, weight.tolist(), bias.tolist()), rows[b][i]) for i, row in enumerate(image)]
        for b, image in enumerate(x.tolist())
    ]
    same(ck.linear_residual(x, weight, bias, residual, ids), expected)
    assert torch.autograd.gradcheck(lambda *t: ck.linear_residual(*t, ids), (x, weight, bias, residual))


def test_mlp():
    given = (randn(2, 3, 4), randn(4), randn(4), randn(7, 4), randn(7), randn(4, 7), randn(4))
    x, gamma, beta, w1, b1, w2, b2 = values(*given)
    expected = [[add(row, dense(gelu(dense(norm(row, gamma, beta), w1, b1)), w2, b2)) for row in image] for image in x]
    same(ck.mlp(*given), expected)
    assert torch.autograd.gradcheck(ck.mlp, given)


def patch(image, index, size, columns):
    """(row, column, channel) of one patch of an image [channel][row][column]."""
    high, wide = size if isinstance(size, tuple) else (size, size)
    top, left = index // columns * high, index % columns * wide
    return [image[c][top + r][left + s] for r in range(high) for s in range(wide) for c in range(len(image))]


@pytest.mark.parametrize(
    ("channels", "height", "width", "size"), [(3, 6, 9, 3), (1, 4, 4, 2), (7, 5, 10, 5), (2, 6, 6, (3, 2))]
)
def test_gather_patches(channels, height, width, size):
    images = randn(2, channels, height, width)
    high, wide = size if isinstance(size, tuple) else (size, size)
    patches = (height // high) * (width // wide)
    ids = torch.stack([torch.randperm(patches, generator=SEED)[:2] for _ in range(2)])
    expected = [
        [patch(image, i, size, width // wide) for i in row]
        for image, row in zip(images.tolist(), ids.tolist(), strict=True)
    ]
    same(ck.gather_patches(images, ids, size), expected)
    same(ck.gather_patches(images.to(memory_format=torch.channels_last), ids.int(), size), expected)
    assert torch.autograd.gradcheck(lambda t: ck.gather_patches(t, ids, size), (images,))


def test_patches_of_bytes():
    images, ids = torch.randint(256, (2, 3, 4, 6), generator=SEED).byte(), torch.tensor([[5, 0], [1, 4]])
    mean, std = torch.tensor([0.5, 0.25, 0.75]), torch.tensor([0.5, 2.0, 0.125])
    expected = [
        [[(v / 255 - mean[i % 3].item()) / std[i % 3].item() for i, v in enumerate(patch(image, index, 2, 3))]
         for index in row]
        for image, row in zip(images.tolist(), ids.tolist(), strict=True)
    ]  # fmt: skip
    rows = ck.gather_patches(images, ids, 2, mean, std)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    guess = randn(2, 2, 12).detach().float()
    found = ck.patch_loss(guess, images, ids, 2, False, mean, std)
    torch.testing.assert_close(found, (guess - rows).square().mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_patch_loss(normalize):
    size, columns = 2, 3
    images, ids = randn(2, 3, 4, 6), torch.tensor([[5, 0, 3], [1, 4, 2]])
    prediction = randn(2, 3, 12)
    losses = []
    for image, row, rows in zip(images.tolist(), ids.tolist(), prediction.tolist(), strict=True):
        for index, guess in zip(row, rows, strict=True):
            target = patch(image, index, size, columns)
            if normalize:
                mean = sum(target) / 12
                variance = sum((t - mean) ** 2 for t in target) / 11  # unbiased
                target = [(t - mean) / math.sqrt(variance + 1e-6) for t in target]
            losses.append(sum((g - t) ** 2 for g, t in zip(guess, target, strict=True)) / 12)
    same(ck.patch_loss(prediction, images, ids, size, normalize), sum(losses) / 6)
    same(ck.patch_loss(prediction, images, ids, size, normalize, reduction="none"), [losses[:3], losses[3:]])
    assert torch.autograd.gradcheck(lambda p, x: ck.patch_loss(p, x, ids, size, normalize), (prediction, images))


def test_patch_loss_of_low_precision_predictions_is_summed_in_float32():
    images, ids = randn(1, 3, 4, 4).detach().float(), torch.tensor([[0, 3]])
    prediction = randn(1, 2, 12).detach().bfloat16()
    loss = ck.patch_loss(prediction, images, ids, 2, normalize=True)
    assert loss.dtype == torch.float32
    assert loss == ck.patch_loss(prediction.float(), images, ids, 2, normalize=True)


def test_constant_patches_have_a_loss():
    loss = ck.patch_loss(torch.ones(1, 1, 12), torch.full((1, 3, 2, 2), 5.0), torch.tensor([[0]]), 2, normalize=True)
    assert loss == 1.0


@pytest.mark.parametrize("keys", [7, 129])
def test_cross_attention_in_float32(keys):
    q, k, v, upstream = randn(2, 5, 32), randn(2, keys, 32), randn(2, keys, 32), randn(2, 5, 32).detach()
    exact = ck.cross_attention(q, k, v, 4, scale=0.3, impl="reference")
    low = [t.detach().float().requires_grad_() for t in (q, k, v)]
    out = ck.cross_attention(*low, 4, scale=0.3, impl="reference")
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(out, low, upstream.float())
    for found, truth in zip(gradients, torch.autograd.grad(exact, (q, k, v), upstream), strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=2e-6)
