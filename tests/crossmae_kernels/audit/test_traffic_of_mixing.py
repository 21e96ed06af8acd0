"""Mixing reads every map once and writes every mix once, and what it moves beyond that is little."""

import pytest
import torch

import crossmae_kernels as ck

MIXES, TOKENS = 12, 2


@pytest.fixture
def measured(interpreter):
    """Traffic of forward and backward pass, in rows, and products in parts of what is needed."""

    def measure(maps, width, dtype=torch.float16, **options):
        from crossmae_kernels.audit.traffic import count_traffic

        of_maps = [torch.randn(1, TOKENS, width).to(dtype).requires_grad_() for _ in range(maps)]
        weight = torch.randn(MIXES, maps).to(dtype).requires_grad_()
        with count_traffic() as forward:
            out = ck.mix_feature_maps(of_maps, weight, impl="triton", **options)
        upstream = torch.randn_like(out)
        with count_traffic() as backward:
            torch.autograd.grad(out, [*of_maps, weight], upstream)
        row, product = TOKENS * width * dtype.itemsize, 2 * TOKENS * width * MIXES * maps
        return forward.bytes / row, backward.bytes / row, forward.flops / product, backward.flops / product

    return measure


MODELS = {"ViT-S": (13, 384), "ViT-B": (13, 768), "ViT-L": (25, 1024), "ViT-H": (33, 1280)}


@pytest.mark.parametrize("model", MODELS)
def test_normalised(measured, model):
    maps, width = MODELS[model]
    forward, backward, forward_products, backward_products = measured(maps, width)
    assert maps + MIXES < forward <= 1.05 * (maps + MIXES)
    # Gradients of the mixes and maps in, gradients of the maps out; of ViT-H gradients of the mixes once more. Weights
    # count each time that they are asked for, from the cache.
    floor = maps + MIXES + maps
    twice = MIXES if model == "ViT-H" else 0
    assert floor + twice < backward <= 1.1 * floor + twice <= 1.3 * floor
    # Mixes are padded to 16, maps to a multiple of 16. One product forward; back the mixes found again, one for the
    # maps' gradients and two for the weights'.
    padding = 16 / MIXES * -(-maps // 16) * 16 / maps
    assert forward_products == pytest.approx(padding)
    assert backward_products == pytest.approx(4 * padding)


@pytest.mark.parametrize("model", MODELS)
def test_normalised_in_float32(measured, model):
    """ViT-B reads upstream gradients twice; where a token does not fit on chip, LayerNorm is a pass of its own.

    Then mixes are written, read and written normalised; back, their gradients likewise, and the mixes read. The rest is
    weights, each time that a panel asks for them.
    """
    maps, width = MODELS[model]
    forward, backward, *_ = measured(maps, width, torch.float32)
    on_chip = model in ("ViT-S", "ViT-B")
    extra = 0 if on_chip else 2 * MIXES
    assert maps + MIXES + extra < forward <= 1.07 * (maps + MIXES + extra)
    extra = {"ViT-S": 0, "ViT-B": MIXES}[model] if on_chip else 3 * MIXES
    assert maps + MIXES + maps + extra < backward <= 1.07 * (maps + MIXES + maps + extra)


def test_sums_alone(measured):
    forward, backward, *_ = measured(13, 768, normalize=False)
    assert 13 + MIXES < forward <= 1.025 * (13 + MIXES)
    assert 13 + MIXES + 13 < backward <= 1.05 * (13 + MIXES + 13)
