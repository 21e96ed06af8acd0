"""Schedule, loop and probes."""

import math

import pytest
import torch

import crossmae
from crossmae.training.data import standardised
from crossmae.training.pretrain import Pretraining, parameter_groups, pretrain
from crossmae.training.probe import evaluate, features, knn_accuracy, linear_accuracy
from crossmae.training.schedule import cosine_with_warmup


def tiny():
    torch.manual_seed(0)
    return crossmae.create_model("crossmae_vit_tiny_patch4", channels=1, encoder_depth=2, decoder_depth=2)


def test_schedule():
    factors = [cosine_with_warmup(step, 100, 10) for step in range(100)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_no_decay_on_biases_and_norms():
    model = tiny()
    decayed, others = (set(map(id, group["params"])) for group in parameter_groups(model, 0.05))
    assert len(decayed) + len(others) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert (id(p) in others) == (name.endswith("bias") or "norm" in name), name


def test_pretraining_learns_and_repeats():
    train, _ = standardised("digits")
    plan = Pretraining(steps=40, batch_size=32, learning_rate=3e-3, warmup_steps=4, prediction_ratio=0.25)
    runs = []
    for _ in range(2):
        model, losses = tiny(), []
        pretrain(model, train.images, plan, lambda step, loss, losses=losses: losses.append((step, loss)))
        runs.append((model, losses))
    (model, losses), (again, repeated) = runs
    assert losses == repeated
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert [step for step, _ in losses] == list(range(1, 41))
    assert sum(loss for _, loss in losses[-5:]) < 0.8 * sum(loss for _, loss in losses[:5])


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="at most the number of images 10, got 32"):
        pretrain(tiny(), torch.zeros(10, 1, 32, 32), Pretraining(1, 32, 1e-3, 1), lambda *_: None)


def test_probes_tell_signal_from_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    noise = torch.randn(300, 8, generator=generator)
    signal = noise + 6 * torch.nn.functional.one_hot(labels, 8)
    for accuracy in (knn_accuracy, linear_accuracy):
        assert accuracy(signal[:200], labels[:200], signal[200:], labels[200:]) > 0.97
        assert accuracy(noise[:200], labels[:200], noise[200:], labels[200:]) < 0.55


def test_features_do_not_depend_on_the_batch_and_need_no_gradient():
    model, (train, test) = tiny(), standardised("digits")
    whole, parts = features(model, test.images[:7]), features(model, test.images[:7], batch_size=3)
    torch.testing.assert_close(whole, parts)
    assert not whole.requires_grad
    assert whole.shape == (7, 96)
    knn, linear = evaluate(train.images.flatten(1), test.images.flatten(1), train, test)
    assert 0.9 < knn < 1
    assert 0.9 < linear < 1
