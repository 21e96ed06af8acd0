"""The learning rate's schedule, and which parameters decay."""

import math

import pytest
import torch

import crossmae
from crossmae.training.plan import cosine_with_warmup
from crossmae.training.pretraining import parameter_groups


def test_schedule():
    factors = [cosine_with_warmup(step, 100, 10) for step in range(100)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_no_decay_on_biases_and_norms():
    torch.manual_seed(0)
    model = crossmae.create_model("crossmae_vit_tiny_patch4", channels=1, encoder_depth=2, decoder_depth=2)
    decayed, others = (set(map(id, group["params"])) for group in parameter_groups(model, 0.05))
    assert len(decayed) + len(others) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert (id(p) in others) == (name.endswith("bias") or "norm" in name), name
