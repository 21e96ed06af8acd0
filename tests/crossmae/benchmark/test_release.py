"""The plain formulation that benchmarks compare with computes what our decoder computes, gradients included."""

import torch

import crossmae
from crossmae.benchmark.release import release_decode, release_model_loss
from crossmae.masking import random_masking


def random_model():
    torch.manual_seed(0)
    model = crossmae.create_model("crossmae_vit_tiny_patch4").double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return model


def test_same_predictions_and_gradients():
    model = random_model()
    masking = random_masking(3, 64, 0.75, 0.25)
    maps = [torch.randn(3, 17, 96, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    ours, theirs = model.decoder(maps, masking), release_decode(model.decoder, maps, masking)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    upstream = torch.randn_like(ours)
    inputs = [*maps, *model.decoder.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_same_loss_and_gradients_of_the_whole_model():
    model = random_model()
    masking = random_masking(3, 64, 0.75, 0.25)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    ours, theirs = model(images, masking=masking).loss, release_model_loss(model, images, masking)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
