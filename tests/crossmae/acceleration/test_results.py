"""An accelerated model returns what its own forward returns, and its tensors are the ones that it has now."""

import copy
import inspect
import io

import pytest
import torch
from accelerated import assert_alike, call, crossmae_model, gradients, images
from golden_cases import CASES
from releases import MAE, CrossMAE, golden, randomized
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import crossmae


@pytest.mark.parametrize("name", CASES)
def test_equals_the_release_with_the_parameters_it_has(name, monkeypatch):
    model, case = golden(name)
    before = dict(model.named_parameters())
    assert crossmae.accelerate(model) is model
    ratios = {"mask_ratio": case.ratios["mask_ratio"]}
    if name != "mae":
        ratios |= {"kept_mask_ratio": case.ratios["prediction_ratio"], "vis": True}
    monkeypatch.setattr(torch, "rand", lambda *_, **__: case.noise)  # the release draws its noise first thing
    loss, prediction, *_, mask = model(case.images, **ratios)
    if name == "mae":
        prediction = prediction[mask.bool()].view_as(case.prediction)
    torch.testing.assert_close(loss, case.loss.squeeze())
    torch.testing.assert_close(prediction, case.prediction, rtol=1e-4, atol=1e-5)
    assert torch.equal(mask, case.mask)
    found = gradients(model, loss)
    for parameter, gradient in case.gradients.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-6)
    assert all(after is before[name] for name, after in model.named_parameters())
    assert model.state_dict().keys() == case.weights.keys()


MODELS = {
    "all maps": crossmae_model,
    "some maps, raw pixels": lambda: crossmae_model(use_fm=(0, -1), use_input=False, norm_pix_loss=False),
    "the last map": lambda: crossmae_model(use_fm=(2,), use_input=False),
    "queries that see each other": lambda: crossmae_model(self_attn=True),
    "another eps": lambda: crossmae_model(eps=1e-3),
    "one channel": lambda: crossmae_model(in_chans=1, mlp_ratio=3.0),
    "MAE": lambda: randomized(MAE(norm_pix_loss=True)),
    "MAE's loss alone": lambda: randomized(MAE(alone=True)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_arguments_results_and_gradients_are_the_model_s_own(kind, training):
    plain = MODELS[kind]().train(training)
    model = crossmae.accelerate(copy.deepcopy(plain))
    x = images()[:, : plain.patch_embed.proj.in_channels]
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    calls = [((x,), {}), ((), {"imgs": x, "mask_ratio": 0.8})]
    if isinstance(plain, CrossMAE):
        calls += [((x, 0.8, 0.3), {"vis": True}), ((x,), {"kept_mask_ratio": 0.25}), ((x, 0.75, 0.5, True), {})]
    for args, kwargs in calls:
        ours, theirs = call(model, *args, **kwargs), call(plain, *args, **kwargs)
        assert_alike(ours, theirs)
    found, expected = gradients(model, ours[0]), gradients(plain, theirs[0])
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_random_numbers_stay_what_they_would_have_been():
    model = crossmae_model()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    crossmae.accelerate(model)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("inner", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outer", [None, torch.bfloat16])
def test_the_autocast_that_the_forward_opens_is_opened(inner, outer):
    class Opening(CrossMAE):
        def autocast(self, images):
            return torch.autocast("cpu", inner) if inner else torch.enable_grad()

    plain = randomized(Opening(use_input=True))
    model = crossmae.accelerate(copy.deepcopy(plain))
    dtypes = []
    for each in (plain, model):
        with torch.autocast("cpu", outer, enabled=outer is not None):
            loss, prediction, *others = call(each, images(), vis=True)
        dtypes.append((loss.dtype, prediction.dtype, *(other.dtype for other in others)))
        last = prediction
    assert dtypes[0] == dtypes[1]
    assert last.dtype == (inner or outer or torch.float32)


def test_an_autocast_that_the_forward_closes_is_closed():
    plain = crossmae_model(amp=None)  # opens autocast with enabled=False
    model = crossmae.accelerate(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        assert_alike(call(model, images(), vis=True), call(plain, images(), vis=True))


def test_a_grad_scaler_s_step():
    plain = crossmae_model(amp=torch.float16)
    losses = {}
    for name, model in (("plain", copy.deepcopy(plain)), ("ours", crossmae.accelerate(copy.deepcopy(plain)))):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        losses[name] = []
        for step in range(4):
            loss = call(model, images(), seed=step)[0]
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[name].append(loss.item())
    assert losses["ours"] == pytest.approx(losses["plain"], rel=2e-2)
    assert losses["ours"][-1] < losses["ours"][0]


@pytest.mark.parametrize("make", [crossmae_model, lambda: randomized(MAE())])
def test_a_copy_computes_with_its_own_weights(make):
    model = crossmae.accelerate(make())
    before = call(model, images())[0]
    other = copy.deepcopy(model)
    assert torch.equal(call(other, images())[0], before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.isclose(call(other, images())[0], before)
    assert torch.equal(call(model, images())[0], before)


def test_an_average_of_the_weights_follows_training():
    plain = crossmae_model()
    states = []
    for model in (copy.deepcopy(plain), crossmae.accelerate(copy.deepcopy(plain))):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            call(model, images(), seed=step)[0].backward()
            optimizer.step()
            average.update_parameters(model)
        states.append((call(average, images())[0], call(model, images())[0]))
    assert_alike(*states)
    assert not torch.isclose(*states[1])


def test_what_replaces_a_parameter_or_a_layer_is_used():
    plain = crossmae_model()
    model = crossmae.accelerate(copy.deepcopy(plain))
    other = randomized(CrossMAE(use_input=True, norm_pix_loss=True), seed=9).state_dict()
    for each in (plain, model):
        each.load_state_dict({name: tensor.clone() for name, tensor in other.items()}, assign=True)
    assert_alike(call(model, images()), call(plain, images()))
    new = nn.Linear(16, 192)
    for each in (plain, model):
        each.decoder_pred = copy.deepcopy(new)
        each.blocks[1].mlp.fc1 = parametrizations.weight_norm(copy.deepcopy(each.blocks[1].mlp.fc1))
        parametrizations.weight_norm(each.decoder_blocks[0].cross_attn.kv)
        each.blocks[0] = copy.deepcopy(each.blocks[2])
    ours, theirs = call(model, images()), call(plain, images())
    assert_alike(ours, theirs)
    found, expected = gradients(model, ours[0]), gradients(plain, theirs[0])
    assert "blocks.1.mlp.fc1.parametrizations.weight.original0" in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [crossmae_model, lambda: randomized(MAE())])
def test_pickled_models_come_back(make):
    model = crossmae.accelerate(make())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    back = torch.load(file, weights_only=False)
    assert_alike(call(back, images()), call(model, images()), rtol=0, atol=0)
    with torch.no_grad():
        back.decoder_pred.bias.add_(1)
    assert not torch.equal(call(back, images())[0], call(model, images())[0])


def test_checkpoints_go_both_ways(tmp_path):
    plain = crossmae_model()
    model = crossmae.accelerate(crossmae_model(use_fm=(-1,)))
    model.load_state_dict(plain.state_dict())
    assert_alike(call(model, images()), call(plain, images()))
    crossmae.restore(model)
    call(model, images())[0].backward()
    fresh = CrossMAE(use_input=True, norm_pix_loss=True)
    fresh.load_state_dict(crossmae.accelerate(model).state_dict())
    assert_alike(call(model, images()), call(fresh, images()))
    torch.save({"model": model.state_dict()}, tmp_path / "checkpoint.pth")
    loaded = crossmae.load(
        tmp_path / "checkpoint.pth", img_size=32, num_heads=4, decoder_num_heads=2, norm_pix_loss=True, use_input=True
    )
    torch.manual_seed(3)
    output = loaded(images(), 0.75, 0.25, rounding="release")
    assert_alike((output.loss, output.prediction), call(model, images(), 0.75, 0.25, vis=True)[:2])


def test_restore_undoes_it_in_a_model_and_in_a_copy():
    plain = crossmae_model()
    model = crossmae.accelerate(copy.deepcopy(plain))
    for each in (copy.deepcopy(model), model):
        assert crossmae.restore(each) is each
        assert not any("forward" in module.__dict__ for module in each.modules())
        assert torch.equal(call(each, images())[0], call(plain, images())[0])
        with pytest.raises(ValueError, match="restore: this CrossMAE is not accelerated"):
            crossmae.restore(each)


def test_numbers_that_change_are_followed():
    plain = crossmae_model(use_input=False, norm_pix_loss=False)
    model = crossmae.accelerate(copy.deepcopy(plain))
    for each in (plain, model):
        each.norm_pix_loss = True
        for block in each.blocks:
            block.attn.num_heads, block.attn.scale = 2, 16**-0.5
    assert_alike(call(model, images(), vis=True), call(plain, images(), vis=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first", ["cast", "acceleration"])
@pytest.mark.parametrize("make", [crossmae_model, lambda: randomized(MAE())])
def test_models_in_16_bits(make, first, dtype):
    plain = make()
    model = copy.deepcopy(plain)
    if first == "acceleration":
        crossmae.accelerate(model)
    plain, model = plain.to(dtype), model.to(dtype)
    if first == "cast":
        crossmae.accelerate(model)
    assert_alike(call(model, images().to(dtype)), call(plain, images().to(dtype)), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("path", ["blocks", "decoder_blocks"])
def test_blocks_that_stand_in_two_places(path):
    plain = crossmae_model()
    blocks = plain.get_submodule(path)
    blocks[1] = blocks[0]
    model = crossmae.accelerate(copy.deepcopy(plain))
    assert_alike(call(model, images()), call(plain, images()))


def test_results_are_detached_where_the_model_detaches_them():
    class Logging(CrossMAE):
        def forward(self, imgs, mask_ratio=0.75, kept_mask_ratio=0.75):
            loss, prediction, _, mask = super().forward(imgs, mask_ratio, kept_mask_ratio, vis=True)
            return {"loss": loss, "log": loss.detach(), "pictures": [prediction.detach(), mask], "nothing": None}

    model = crossmae.accelerate(randomized(Logging(use_input=True)))
    out = model(images())
    assert list(out) == ["loss", "log", "pictures", "nothing"]
    assert out["nothing"] is None
    assert out["loss"].requires_grad
    assert not out["log"].requires_grad
    assert not out["pictures"][0].requires_grad


def test_what_is_returned_in_evaluation_may_be_something_else():
    class Quiet(CrossMAE):
        def forward(self, imgs, mask_ratio=0.75, kept_mask_ratio=0.75):
            out = super().forward(imgs, mask_ratio, kept_mask_ratio, vis=True)
            return out[0] if self.training else out[:2]

    plain = randomized(Quiet(use_input=True))
    model = crossmae.accelerate(copy.deepcopy(plain).eval())
    for training in (True, False):
        assert_alike(call(model.train(training), images()), call(plain.train(training), images()))


def test_buffers_and_modes_are_as_they_were():
    model = crossmae_model()
    parametrizations.spectral_norm(model.blocks[0].mlp.fc1)
    model.blocks[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    crossmae.accelerate(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
