"""Models of other libraries compute what they computed before, in training and in evaluation, and train as before."""

import copy
import inspect

import pytest
import torch
from clients import (
    MAKERS,
    PATCH,
    WIDTH,
    client,
    hugging_face,
    imported,
    pictures,
    results,
    timm_vit,
)
from releases import randomized
from torch import nn

import crossmae
from crossmae.acceleration.forward import ModuleForward
from crossmae.measure import bytes_saved_for_backward
from crossmae_kernels.testing import assert_within_budget, budgets
from crossmae_kernels.testing.judge import gradients_of, upstream_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries warn of is theirs


def solve(model, dtype):
    """Results, and the gradients of all parameters for random gradients of all results that have one."""
    out = results(model, pictures(dtype=dtype))
    reached = {name: part for name, part in out.items() if torch.is_tensor(part) and part.requires_grad}
    gradients = gradients_of(reached, dict(nn.Module.named_parameters(model)), upstream_of(reached))
    return {name: part.detach() if torch.is_tensor(part) else part for name, part in (out | gradients).items()}


# In evaluation stable-pretraining's models do something else; the others compute there as in training.
IN_EVALUATION = [
    pytest.param(name, False, marks=[] if name.startswith("stable") else pytest.mark.slow, id=f"{name}, evaluation")
    for name in MAKERS
]


@pytest.mark.budget
@pytest.mark.parametrize(("name", "training"), [*((name, True) for name in MAKERS), *IN_EVALUATION])
def test_results_and_gradients_are_the_model_s_own(name, training):
    plain = client(name).train(training)
    model = crossmae.accelerate(copy.deepcopy(plain))
    everything, found, own = (
        solve(copy.deepcopy(plain).double(), torch.float64),
        *(solve(m, torch.float32) for m in (model, plain)),
    )
    assert type(model(pictures())) is type(plain(pictures()))
    assert found.keys() == everything.keys()
    exact = {name: part for name, part in everything.items() if torch.is_tensor(part) and part.dtype == torch.float64}
    assert_within_budget(found, exact, budgets(lambda: solve(plain, torch.float32), exact))
    for key in everything.keys() - exact.keys():  # masks, ids, counts
        assert torch.equal(found[key], own[key]) if torch.is_tensor(own[key]) else found[key] == own[key]


@pytest.mark.parametrize("name", MAKERS)
def test_twenty_steps_are_on_the_same_line(name):
    """In float64, where rounding stays far below what another formula would add up to."""
    plain = client(name).double()
    losses = []
    for model in (copy.deepcopy(plain), crossmae.accelerate(copy.deepcopy(plain))):
        optimizer = torch.optim.AdamW(nn.Module.parameters(model), lr=1e-3)
        line = []
        for step in range(20):
            loss = results(model, pictures(dtype=torch.float64), seed=step)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            line.append(loss.item())
        losses.append(line)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("name", MAKERS)
def test_restored_models_are_what_they_were(name):
    plain = client(name)
    model = crossmae.accelerate(copy.deepcopy(plain))
    replaced = [module for module in model.modules() if isinstance(module.__dict__.get("forward"), ModuleForward)]
    assert len(replaced) >= 4
    assert [inspect.signature(module.forward) for module in replaced] == [
        inspect.signature(type(module).forward.__get__(module)) for module in replaced
    ]
    assert model.state_dict().keys() == plain.state_dict().keys()
    copied = copy.deepcopy(model)
    assert crossmae.restore(model) is model
    assert not any(isinstance(module.__dict__.get("forward"), ModuleForward) for module in model.modules())
    ours, theirs = results(model, pictures()), results(plain, pictures())
    assert all(torch.equal(ours[key], value) for key, value in theirs.items() if torch.is_tensor(value))
    with pytest.raises(ValueError, match="is already accelerated"):
        crossmae.accelerate(copied)


def test_hugging_face_s_own_arguments_are_honoured():
    plain = randomized(hugging_face(attn_implementation="eager"))
    model = crossmae.accelerate(copy.deepcopy(plain))
    noise = torch.rand(3, 16)
    for arguments in (
        {"output_hidden_states": True},
        {"noise": noise},
    ):  # what records hidden states stays on the model
        ours, theirs = results(model, pictures(), **arguments), results(plain, pictures(), **arguments)
        assert ours.keys() == theirs.keys()
        torch.testing.assert_close([*ours.values()], [*theirs.values()], rtol=1e-4, atol=1e-5)
    assert type(model(pictures(), noise=noise, return_dict=False)) is tuple
    with pytest.raises(RuntimeError, match=r"vit.layers.0.output_attentions is supported only at its default; see"):
        model(pictures(), output_attentions=True)
    with pytest.raises(RuntimeError, match=r"vit.layers.0.attention_mask is supported only at its default"):
        model(pictures(), attention_mask=torch.tensor([[1] * 4 + [0]] * 3))


def test_hugging_face_s_checkpointing_keeps_less_and_changes_nothing():
    model = crossmae.accelerate(client("Hugging Face"))
    exact, kept = (
        solve(model, torch.float32),
        bytes_saved_for_backward(lambda: results(model, pictures())["loss"], model),
    )
    model.gradient_checkpointing_enable()
    assert bytes_saved_for_backward(lambda: results(model, pictures())["loss"], model) < 0.7 * kept
    torch.testing.assert_close(solve(model, torch.float32), exact)


def lightly_s_old_decoder():
    decoder = imported("lightly.models.modules").MAEDecoderTIMM
    return decoder(num_patches=16, patch_size=PATCH, embed_dim=WIDTH, decoder_embed_dim=WIDTH, decoder_num_heads=2)


@pytest.mark.parametrize("make", [lightly_s_old_decoder, timm_vit])
def test_what_stands_alone(make):
    plain = randomized(make())
    model = crossmae.accelerate(copy.deepcopy(plain))
    x = torch.randn(2, 17, WIDTH) if "decoder_pred" in plain._modules else pictures()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
