"""The rulers themselves."""

import time

import torch
from torch import nn

import crossmae
from crossmae.masking import random_masking
from crossmae.measure import bytes_saved_for_backward, interleaved_medians


def test_medians_of_sleeps_run_in_turn():
    order = []

    def sleeper(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)

        return run

    medians = interleaved_medians({"a": sleeper("a", 0.01), "b": sleeper("b", 0.03)}, rounds=3)
    assert 0.01 <= medians["a"] < medians["b"]
    rounds = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert rounds == [["a", "b"]] * len(rounds)
    assert len(rounds) >= 4


def test_bytes_of_a_known_computation():
    x = torch.randn(100, 10, requires_grad=True)
    linear = nn.Linear(10, 20)
    # The linear layer keeps its input (its weight is the module's own), the product keeps both factors.
    assert bytes_saved_for_backward(lambda: linear(x), linear) == 100 * 10 * 4
    assert bytes_saved_for_backward(lambda: x * x.exp(), linear) == 2 * 100 * 10 * 4
    # Two views of one storage count once, and keep all of it.
    assert bytes_saved_for_backward(lambda: x[:50] * x[:50].exp() + x.sum(), linear) == (100 + 50) * 10 * 4


def test_partial_prediction_keeps_less():
    kept = {}
    for ratio in (0.25, 0.75):
        model = crossmae.create_model("crossmae_vit_tiny_patch4")
        masking = random_masking(8, 64, 0.75, ratio)
        maps = [m.detach().requires_grad_() for m in model.encoder(torch.randn(8, 3, 32, 32), masking.visible_ids)]
        kept[ratio] = bytes_saved_for_backward(lambda m=model, x=maps, k=masking: m.decoder(x, k), model)
    assert 1.5 < kept[0.75] / kept[0.25] < 3
