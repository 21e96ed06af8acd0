"""Small arguments of every operator, for what holds for all of them."""

from itertools import product

import torch

import crossmae_kernels  # noqa: F401

OPERATORS = sorted(
    name.partition("::")[2]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("crossmae_kernels::") and "." not in name
)
FORMS = {
    "mlp": ("single", "tiled", "library"),
    "mlp_backward": ("tiled", "library"),
    "norm_linear": ("tiled", "library"),
    "linear_residual": ("tiled", "library"),
}
TOKENS, KEYS, HEADS, WIDTH, OUTER, TABLE, PATCH, SIZE = 3, 5, 1, 32, 48, 7, 2, 6
VALUES = 3 * PATCH**2


def wanted(count):
    """No gradient, each alone, and all of them."""
    yield [False] * count
    yield from torch.eye(count, dtype=torch.bool).tolist()
    yield [True] * count


class Cases:
    """Arguments of each operator, under its name. The last ones ask for everything."""

    def __init__(self, device, dtype, batch):
        self.device, self.dtype, self.batch = device, dtype, batch
        self.ids = torch.randint(4, (batch, TOKENS), device=device)

    def random(self, *shape, dtype=None):
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)

    def statistic(self, *shape):
        return torch.rand(shape, device=self.device) + 0.5

    def rows(self, *width, dtype=None):
        return self.random(self.batch, TOKENS, *width, dtype=dtype)

    def cross_attention(self):
        query, key = self.rows(WIDTH), self.random(self.batch, KEYS, WIDTH)
        yield query, key, key.clone(), None, HEADS, 0.25
        yield self.random(TABLE, WIDTH), key, key.clone(), self.ids, HEADS, 0.25
        yield query, self.random(self.batch, KEYS, 2 * WIDTH), None, None, HEADS, 0.25
        yield self.rows(3 * WIDTH), None, None, None, HEADS, 0.25
        # More than fits on chip.
        long = self.random(self.batch, 520 // self.dtype.itemsize, WIDTH)
        yield query, long, long.clone(), None, HEADS, 0.25

    def cross_attention_backward(self):
        for query, key, value, ids, heads, scale in self.cross_attention():
            out, lse = torch.ops.crossmae_kernels.cross_attention(query, key, value, ids, heads, scale)
            kept = (out, lse) if lse.dim() > 1 else (None, None)
            for want in wanted(3) if lse.dim() == 1 else [[True] * 3]:
                yield torch.randn_like(out), query, key, value, ids, *kept, heads, scale, want

    def fold_norm(self):
        weight, bias, norm = self.random(OUTER, WIDTH), self.random(OUTER), self.random(WIDTH)
        for dtype in (torch.float32, torch.float16):
            yield weight, bias, norm, norm.clone(), dtype
            yield weight, None, norm, None, dtype
            yield weight, None, None, norm, dtype

    def fold_norms(self):
        weights, bias, norm = self.random(2, OUTER, WIDTH), self.random(2, OUTER), self.random(2, WIDTH)
        for dtype in (torch.float32, torch.float16):
            yield list(weights.clone().unbind()), bias, norm, norm.clone(), dtype
            yield list(weights.clone().unbind()), None, norm, None, dtype

    def fold_norm_backward(self):
        weights, norm = [self.random(OUTER, WIDTH) for _ in range(2)], self.random(2, WIDTH)
        for want in wanted(3):
            yield self.random(2, OUTER, WIDTH), self.random(2, OUTER), weights, norm, norm.clone(), want
            yield self.random(OUTER, WIDTH), self.random(OUTER), weights[:1], norm[0], norm[1], want

    def mlp(self):
        weights = self.random(OUTER, WIDTH), self.random(OUTER), self.random(WIDTH, OUTER), self.random(WIDTH)
        for x in (self.rows(WIDTH), self.rows(WIDTH, dtype=torch.float32)):
            for keep, keep_hidden in ((False, False), (True, False), (True, True)):
                yield x, *weights, 1e-6, keep, keep_hidden

    def mlp_backward(self):
        rows = self.batch * TOKENS
        for hidden, want in product((None, self.random(rows, OUTER)), wanted(5)):
            yield (
                self.rows(WIDTH), self.random(OUTER, WIDTH), self.random(OUTER), self.random(WIDTH, OUTER),
                self.random(rows, WIDTH), self.statistic(rows), hidden, want,
            )  # fmt: skip

    def norm_linear(self):
        for gelu, keep, bias in product([False, True], [False, True], [None, self.random(OUTER)]):
            yield self.rows(WIDTH), self.random(OUTER, WIDTH), bias, 1e-6, gelu, keep

    def norm_linear_backward(self):
        rows = self.batch * TOKENS
        for hidden, want in product((None, self.random(rows, OUTER)), wanted(3)):
            yield (
                self.rows(OUTER), self.random(OUTER, WIDTH), self.random(rows, WIDTH), self.statistic(rows), hidden,
                torch.float32, want,
            )  # fmt: skip

    def linear_residual(self):
        for residual, ids in ((self.rows(OUTER), None), (self.random(TABLE, OUTER), self.ids)):
            yield self.rows(WIDTH), self.random(OUTER, WIDTH), self.random(OUTER), residual, ids

    def linear_residual_backward(self):
        for want in wanted(4):
            ids = self.ids if want[3] else None
            yield self.rows(OUTER), self.rows(WIDTH), self.random(OUTER, WIDTH), ids, TABLE, want

    def mix_feature_maps(self):
        for normalize in (True, False):
            yield [self.rows(WIDTH) for _ in range(3)], self.random(2, 3), 1e-6, normalize

    def mix_feature_maps_backward(self):
        maps, weight, mixes = [self.rows(WIDTH) for _ in range(3)], self.random(2, 3), self.rows(WIDTH)
        statistics = [self.statistic(2, self.batch, TOKENS) for _ in range(2)]
        for want in wanted(2):
            yield torch.stack([mixes, mixes]), maps, weight, None, *statistics, True, want
            yield torch.stack([mixes, mixes]), maps, weight, torch.stack([mixes, mixes]), *statistics, True, want
            yield torch.stack([mixes, mixes]), maps, weight, None, *statistics, False, want

    def gather_patches(self):
        pixels = torch.randint(256, (self.batch, 3, SIZE, SIZE), device=self.device, dtype=torch.uint8)
        for dtype in (torch.float32, torch.float16):
            yield self.random(self.batch, 3, SIZE, SIZE), self.ids, None, None, PATCH, dtype
            yield pixels, self.ids, self.statistic(3), self.statistic(3), PATCH, dtype

    def gather_patches_backward(self):
        for dtype in (torch.float32, torch.float16):
            yield self.rows(VALUES), self.ids, [self.batch, 3, SIZE, SIZE], PATCH, dtype

    def patch_loss(self):
        for images, _, mean, std, _, dtype in self.gather_patches():
            for normalize, keep in product([False, True], repeat=2):
                yield self.rows(VALUES, dtype=dtype), images, self.ids, mean, std, PATCH, normalize, keep

    def patch_loss_backward(self):
        yield self.statistic(self.batch, TOKENS), self.rows(VALUES)

    def project_backward(self):
        for want in wanted(3):
            gradients = [self.rows(OUTER) for _ in range(2)]
            yield self.random(2, self.batch, TOKENS, WIDTH), self.random(2, OUTER, WIDTH), gradients, want
