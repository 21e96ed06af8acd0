"""Probes on frozen features: their optimizer by its formula, and what they tell."""

import pytest
import torch

from crossmae.training.linear_probe import TRUST, AttentiveProbe, LinearProbe, ProbeRecipe, fitted, logits
from crossmae.training.probe import LabelledFeatures


def features(count=60, tokens=None):
    """Three classes that one direction of eight tells apart, if tokens are asked for in one token of each image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    signal = 4.0 * torch.nn.functional.one_hot(labels, 8)
    if tokens is None:
        return LabelledFeatures(5 + torch.randn(count, 8, generator=generator) + signal, labels)
    values = torch.randn(count, tokens, 8, generator=generator)
    values[torch.arange(count), torch.randint(tokens, (count,), generator=generator)] += 2 * signal
    return LabelledFeatures(values, labels)


def test_the_first_steps_are_those_of_lars(monkeypatch):
    """You et al. (2017): a weight's step is as long as trust x the weight, whatever the gradient; a bias's is not."""
    known = features()
    torch.manual_seed(0)
    probe = LinearProbe(8, 3).double()
    weight, bias = (p.detach().clone() for p in probe.head.parameters())
    standardised = (known.values - known.values.mean(0)) / (known.values.var(0, unbiased=False) + 1e-6).sqrt()
    momentum_w, momentum_b = torch.zeros_like(weight), torch.zeros_like(bias)
    recipe = ProbeRecipe(epochs=3, base_learning_rate=0.5, batch_size=512)
    # Cosine over three steps, without a warm-up, which rounds to none; the whole set is a batch.
    for rate in (1.0, 0.75, 0.25):
        probabilities = (standardised.double() @ weight.T + bias).softmax(dim=1)
        error = (probabilities - torch.nn.functional.one_hot(known.labels, 3)) / len(known.labels)
        of_weight, of_bias = error.T @ standardised.double(), error.sum(0)
        momentum_w = 0.9 * momentum_w + TRUST * weight.norm() / of_weight.norm() * of_weight
        momentum_b = 0.9 * momentum_b + of_bias
        weight, bias = weight - rate * momentum_w, bias - rate * momentum_b
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.double())
    fitted(probe, known, recipe, "cpu")
    torch.testing.assert_close(probe.head.weight.detach(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(probe.head.bias.detach(), bias, rtol=1e-5, atol=1e-6)
    assert not probe.training


def test_few_features_make_a_thousand_steps_and_many_ninety_epochs():
    assert ProbeRecipe().steps(60) == (1000, 1)
    assert ProbeRecipe().steps(1_281_167) == (7020, 78)
    assert ProbeRecipe(epochs=2, batch_size=16).steps(60) == (6, 3)
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=rf"seed must lie in \[0, 2\*\*63\), got {seed}"):
            ProbeRecipe(seed=seed)
    with pytest.raises(ValueError, match="epochs must be positive, got 0"):
        ProbeRecipe(epochs=0)


def test_a_linear_probe_learns_and_tells_features_in_any_batch_alike():
    known = features()
    probe = fitted(LinearProbe(8, 3), known, ProbeRecipe(epochs=100, batch_size=20, base_learning_rate=40.0), "cpu")
    scores = logits(probe, known, batch=7)
    assert (scores.argmax(1) == known.labels).double().mean() > 0.95
    torch.testing.assert_close(scores, logits(probe, known))


def test_attentive_pooling_finds_the_token_that_tells():
    known = features(count=120, tokens=6)
    recipe = ProbeRecipe(epochs=60, batch_size=40, base_learning_rate=60.0)
    probe = fitted(AttentiveProbe(8, 3, heads=2), known, recipe, "cpu")
    attentive = (logits(probe, known).argmax(1) == known.labels).double().mean()
    assert attentive > 0.9
