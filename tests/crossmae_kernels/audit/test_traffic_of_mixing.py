"""Mixing reads every map once and writes every mix once, and what it moves beyond that is little."""

import pytest
import torch

import crossmae_kernels as ck

MIXES, TOKENS = 12, 2


@pytest.fixture
def measured(interpreter):
    """Traffic of forward and backward pass, in rows of 16 bits, and products in parts of what is needed."""

    def measure(maps, width, **options):
        from crossmae_kernels.audit.traffic import count_traffic

        of_maps = [torch.randn(1, TOKENS, width).half().requires_grad_() for _ in range(maps)]
        weight = torch.randn(MIXES, maps).half().requires_grad_()
        with count_traffic() as forward:
            out = ck.mix_feature_maps(of_maps, weight, impl="triton", **options)
        upstream = torch.randn_like(out)
        with count_traffic() as backward:
            torch.autograd.grad(out, [*of_maps, weight], upstream)
        row, product = TOKENS * width * 2, 2 * TOKENS * width * MIXES * maps
        return forward.bytes / row, backward.bytes / row, forward.flops / product, backward.flops / product

    return measure


# ViT-S, ViT-B, ViT-L and ViT-H. Up to ViT-B LayerNorm's gradient is found on chip. Beyond, it is a pass of its own:
# upstream gradients and mixes in, gradients of the mixes out and in again. In both, weights count each time they are
# asked for, from the cache.
@pytest.mark.parametrize(
    ("maps", "width", "backward_bound"), [(13, 384, 1.1), (13, 768, 1.05), (25, 1024, 1.65), (33, 1280, 1.55)]
)
def test_normalised(measured, maps, width, backward_bound):
    forward, backward, forward_products, backward_products = measured(maps, width)
    assert maps + MIXES < forward <= 1.025 * (maps + MIXES)
    floor = maps + MIXES + maps
    assert floor < backward <= backward_bound * floor
    # Mixes are padded to 16, maps to a multiple of 16; one product forward; back two, and the mixes found again.
    padding = 16 / MIXES * -(-maps // 16) * 16 / maps
    assert forward_products == pytest.approx(padding)
    assert backward_products == pytest.approx((3 if width <= 768 else 2) * padding)


def test_sums_alone(measured):
    forward, backward, *_ = measured(13, 768, normalize=False)
    assert 13 + MIXES < forward <= 1.025 * (13 + MIXES)
    assert 13 + MIXES + 13 < backward <= 1.05 * (13 + MIXES + 13)
