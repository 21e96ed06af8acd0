"""A model of somebody else's, with a release's names, on this package's operations."""

import pytest
import torch
from golden_cases import CASES, Case
from torch import nn

import crossmae


class Theirs(nn.Module):
    """Parameters under a release's names, and no idea of what to do with them."""

    def __init__(self, weights):
        super().__init__()
        for name, weight in weights.items():
            owner = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, nn.Parameter(weight.clone(), requires_grad="pos_embed" not in name))


@pytest.mark.parametrize("name", CASES)
def test_equals_the_release_with_the_parameters_it_has(name, monkeypatch):
    case = Case(name)
    model = Theirs(case.weights)
    before = dict(model.named_parameters())
    assert crossmae.accelerate(model, **case.arguments) is model
    # The release draws its noise first thing.
    monkeypatch.setattr(torch, "rand", lambda *_, **__: case.noise)
    ratios = {"mask_ratio": case.ratios["mask_ratio"]}
    if case.ratios.get("prediction_ratio") is not None:
        ratios["kept_mask_ratio"] = case.ratios["prediction_ratio"]
    loss, prediction, mask = model(case.images, **ratios)
    loss.backward()
    torch.testing.assert_close(loss, case.loss.squeeze())
    torch.testing.assert_close(prediction, case.prediction, rtol=1e-4, atol=1e-5)
    assert torch.equal(mask, case.mask)
    assert all(after is before[name] for name, after in model.named_parameters())
    assert model.state_dict().keys() == case.weights.keys()
    for name, gradient in case.gradients.items():
        torch.testing.assert_close(before[name].grad, gradient, rtol=1e-4, atol=1e-6)


def test_an_optimizer_s_step_is_seen():
    case = Case(CASES[0])
    model = crossmae.accelerate(Theirs(case.weights), **case.arguments)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        loss = model(case.images)[0]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_what_does_not_fit_is_refused_and_nothing_changed():
    case = Case(CASES[0])
    model = Theirs(case.weights)
    with pytest.raises(ValueError, match="does not fit the model"):
        crossmae.accelerate(model, **{**case.arguments, "depth": case.arguments["depth"] + 1})
    with pytest.raises(NotImplementedError):
        model(case.images)
