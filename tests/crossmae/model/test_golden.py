"""Parity with the release: loss, predictions, masks and every gradient."""

from collections import Counter

import pytest
import torch
from golden_cases import CASES, Case
from operators import names_of_operators

import crossmae
from crossmae_kernels.runtime.dispatch import default_implementation
from crossmae_kernels.testing import assert_within_budget, budgets


def relative(ours, theirs):
    ours, theirs = ours.detach().double().cpu(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm())


# Float64 differs from the release's float32 by the release's own rounding alone.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 3e-6)])
@pytest.mark.parametrize("name", CASES)
def test_loss_prediction_mask_and_gradients(name, dtype, tolerance):
    case = Case(name)
    model = crossmae.from_release(case.weights, **case.arguments).to(dtype)
    out = model(case.images.to(dtype), **case.ratios, noise=case.noise, rounding="release")
    out.loss.backward()

    mask = torch.zeros_like(case.mask).scatter(1, out.masking.predicted_ids, 1)
    assert torch.equal(mask, case.mask)
    assert relative(out.loss, case.loss) < tolerance
    assert relative(out.prediction, case.prediction) < tolerance
    gradients = crossmae.to_release({name: p.grad for name, p in model.named_parameters()})
    assert gradients.keys() == case.gradients.keys()
    errors = {key: relative(gradients[key], case.gradients[key]) for key in gradients}
    assert max(errors.values()) < tolerance, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("name", CASES)
def test_positions_are_the_release_s(name):
    case = Case(name)
    model = crossmae.from_release(case.weights, **case.arguments)
    fresh = crossmae.MaskedAutoencoder(model.config)
    for part in ("encoder.positions", "decoder.positions"):
        torch.testing.assert_close(fresh.state_dict()[part], model.state_dict()[part], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_parity_through_the_kernels(name):
    # On a CPU in the interpreter, which tests/conftest.py asks for.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Case(name)
    model = crossmae.from_release(case.weights, **case.arguments).to(device)
    with names_of_operators() as names, default_implementation("triton"):
        out = model(case.images.to(device), **case.ratios, noise=case.noise, rounding="release")
        out.loss.backward()

    depth, decoder_depth = case.arguments["depth"], case.arguments["decoder_depth"]
    called = Counter(name.removeprefix("crossmae_kernels::") for name in names)
    assert called["cross_attention"] == called["linear_residual"] == called["mlp"] == depth + decoder_depth
    assert called["norm_linear"] == depth + decoder_depth + 1  # and the head
    assert called["gather_patches"] == called["patch_loss"] == 1
    assert called["mix_feature_maps"] == (model.config.feature_maps is not None)

    assert relative(out.loss, case.loss) < 1e-5
    assert relative(out.prediction, case.prediction) < 1e-5
    gradients = crossmae.to_release({name: p.grad for name, p in model.named_parameters()})
    errors = {key: relative(gradients[key], case.gradients[key]) for key in case.gradients}
    assert max(errors.values()) < 1e-5, max(errors.items(), key=lambda item: item[1])


# One of each decoder.
@pytest.mark.budget
@pytest.mark.parametrize("name", ["crossmae_subset_maps", "mae"])
def test_bfloat16_through_the_kernels_keeps_to_the_budget(name):
    """Under autocast; what the release's float32 is off by is nothing beside the budget."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Case(name)
    model = crossmae.from_release(case.weights, **case.arguments).to(device)
    images, noise = case.images.to(device), case.noise.to(device)

    def solve(impl):
        model.zero_grad()
        with default_implementation(impl), torch.autocast(device, torch.bfloat16):
            out = model(images, **case.ratios, noise=noise, rounding="release")
        out.loss.backward()
        gradients = crossmae.to_release({name: p.grad.clone() for name, p in model.named_parameters()})
        return {"loss": out.loss.detach(), "prediction": out.prediction.detach(), **gradients}

    exact = {"loss": case.loss.squeeze(), "prediction": case.prediction, **case.gradients}
    exact = {name: t.double() for name, t in exact.items()}
    assert_within_budget(solve("triton"), exact, budgets(lambda: solve("reference"), exact))
