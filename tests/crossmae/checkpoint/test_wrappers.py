"""State dicts as trainers write them: wrapped, nested, averaged."""

import pytest
import torch
from checkpoint_files import HEADS, agrees_with_the_release, heard, saved
from golden_cases import Case

import crossmae

CASE = Case("mae")
TOLD = {**HEADS, "norm_pix_loss": True}


def prefixed(prefix, weights=CASE.weights):
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def inside(wrapper, weights=CASE.weights):
    """A wrapper around every block and around the attention within."""
    return {
        name.replace(".attn.", f".attn.{wrapper}.").replace("blocks.1.", f"blocks.1.{wrapper}."): tensor
        for name, tensor in weights.items()
    }


PREFIXES = [
    "module.", "_orig_mod.", "model.", "backbone.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "net.",
    "module.module.", "module._orig_mod.", "_orig_mod.module.", "model.model.", "model.module._orig_mod.",
    "_fsdp_wrapped_module._checkpoint_wrapped_module.", "_forward_module._orig_mod.module.backbone.",
]  # fmt: skip
KEYS = [
    "model", "state_dict", "state", "model_state", "model_state_dict", "module", "net", "weights",
    "model_ema", "ema", "state_dict_ema",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_taken_off(prefix, tmp_path):
    model, messages = heard(saved(prefixed(prefix), tmp_path / "file.pth"), **TOLD)
    assert agrees_with_the_release(model, "mae")
    assert not messages


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
def test_wrappers_within_a_model_are_taken_off(wrapper, tmp_path):
    model, messages = heard(saved({"model": inside(wrapper, prefixed("module."))}, tmp_path / "file.pth"), **TOLD)
    assert agrees_with_the_release(model, "mae")
    assert not messages


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_are_found_under_any_key(key, prefix, tmp_path):
    content = {key: prefixed(prefix), "epoch": 3, "scaler": {"scale": 2.0}, "optimizer": {"state": {0: torch.ones(1)}}}
    model, messages = heard(saved(content, tmp_path / "file.pth"), **TOLD)
    assert agrees_with_the_release(model, "mae")
    assert ["are averaged" in message for message in messages] == [True] * ("ema" in key)


def test_lightning(tmp_path):
    name = "crossmae_interblock_input"
    content = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed("model.", Case(name).weights), "probe.weight": torch.ones(2, 24)},
        "optimizer_states": [{"state": {}}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.3)}},
        "hyper_parameters": {"lr": 0.1, "norm_pix_loss": True},
    }
    model, messages = heard(saved(content, tmp_path / "last.ckpt"), **HEADS)
    assert agrees_with_the_release(model, name)
    (message,) = messages
    assert message.endswith("left out as no part of the model: probe.weight")


def test_averaged_model_of_pytorch(tmp_path):
    model = crossmae.from_release(CASE.weights, **CASE.arguments)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    loaded, messages = heard(saved(averaged.state_dict(), tmp_path / "ema.pth"), **TOLD)
    assert agrees_with_the_release(loaded, "mae")
    assert "its only weights, under no key, are averaged" in messages[0]


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (lambda raw, ema: {"model": raw, "model_ema": ema}, "model_ema"),
        (lambda raw, ema: {"state_dict_ema": prefixed("module.", ema), "state_dict": raw}, "state_dict_ema"),
        (lambda raw, ema: {"model": raw, "ema": {"module": ema, "decay": 0.9}}, "ema"),
        (lambda raw, ema: {"model": raw, "swa": {"n_averaged": torch.tensor(3), **prefixed("module.", ema)}}, "swa"),
        (lambda raw, ema: {"state_dict": {**prefixed("net.", raw), **prefixed("ema_model.module.", ema)}}, "ema_model"),
        (lambda raw, ema: {**raw, "model_ema": ema}, "model_ema"),
    ],
)
def test_of_raw_and_averaged_weights_the_raw_ones_are_taken_aloud(content, key, tmp_path):
    averaged = {name: torch.zeros_like(tensor) for name, tensor in CASE.weights.items()}
    averaged["pos_embed"] = CASE.weights["pos_embed"]
    path = saved(content(CASE.weights, averaged), tmp_path / "file.pth")
    model, (message,) = heard(path, **TOLD)
    assert agrees_with_the_release(model, "mae")
    assert "averaged ones" in message
    assert key in message
    model, messages = heard(path, key=key, **TOLD)
    assert not model.encoder.cls_token.any()
    assert not messages


def test_of_two_models_one_must_be_chosen(tmp_path):
    other = {name: tensor + 1 for name, tensor in CASE.weights.items()}
    path = saved({"student": CASE.weights, "teacher": other}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"several models, under 'student', under 'teacher'; choose one by key="):
        crossmae.load(path, **TOLD)
    assert agrees_with_the_release(crossmae.load(path, key="student", **TOLD), "mae")
    for key in ("model", "foo", ""):
        message = f"holds no model under {key!r}; its models are under 'student', under 'teacher'"
        with pytest.raises(ValueError, match=message):
            crossmae.load(path, key=key, **TOLD)
    with pytest.raises(ValueError, match="load: key must be a string or None, got 3"):
        crossmae.load(path, key=3, **TOLD)


@pytest.mark.parametrize(
    "beside",
    [
        lambda moments: {"optimizer": {"momentum": moments}},
        lambda moments: {"exp_avg": moments, "exp_avg_sq": moments, "max_exp_avg_sq": moments},
        lambda moments: {"momentum": moments, "momentum_buffer": moments},
        lambda moments: {"grads": moments, "opt_state": moments},
    ],
)
def test_momenta_named_like_parameters_are_no_model(beside, tmp_path):
    content = {"model": CASE.weights, **beside(CASE.weights)}
    model, messages = heard(saved(content, tmp_path / "file.pth"), **TOLD)
    assert agrees_with_the_release(model, "mae")
    assert not messages


def test_a_momentum_encoder_is_a_model(tmp_path):
    content = {**prefixed("encoder_q."), **prefixed("momentum_encoder.")}
    with pytest.raises(ValueError, match=r"several models, under 'encoder_q', under 'momentum_encoder'"):
        crossmae.load(saved(content, tmp_path / "file.pth"), **TOLD)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_without_data(prefix, tmp_path):
    empty = {f"{prefix}{name}": tensor.to("meta") for name, tensor in CASE.weights.items()}
    with pytest.raises(ValueError, match=r"file.pth: tensors must be dense and with data, got .* on meta.* more$"):
        crossmae.load(saved(empty, tmp_path / "file.pth"), **TOLD)


def test_one_tensor_under_two_wrappers(tmp_path):
    twice = {**CASE.weights, "module.mask_token": CASE.weights["mask_token"].clone()}
    assert agrees_with_the_release(crossmae.load(saved(twice, tmp_path / "same.pth"), **TOLD), "mae")
    twice["module.mask_token"] += 1
    with pytest.raises(ValueError, match=r"two tensors 'mask_token' that differ"):
        crossmae.load(saved(twice, tmp_path / "other.pth"), **TOLD)


@pytest.mark.parametrize("part", ["whole", "encoder"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.model."])
def test_our_own_state_dicts(part, prefix, tmp_path):
    torch.manual_seed(0)
    model = crossmae.create_model("crossmae_vit_tiny_patch4", image_size=(32, 8), mlp_ratio=2.5).eval()
    state = (model if part == "whole" else model.encoder).state_dict()
    loaded, messages = heard(saved(prefixed(prefix, state), tmp_path / "file.pth"))
    images = torch.rand(2, 3, 32, 8)
    assert torch.equal(loaded.encode(images), model.encode(images))
    assert "encoder_heads=3" in messages[0]
    if part == "whole":
        assert loaded.config == model.config
        assert "decoder_heads=4, normalize_targets=True" in messages[0]
        said = {"encoder_heads": 3, "decoder_heads": 4, "normalize_targets": True}
        assert heard(tmp_path / "file.pth", **said, norm_eps=1e-6, pixel_order="hwc")[1] == []


def test_habits_that_no_tensor_shows_are_assumed_aloud_and_taken_as_given(tmp_path):
    torch.manual_seed(0)
    model = crossmae.create_model("crossmae_vit_tiny_patch4", pixel_order="chw", norm_eps=1e-3).eval()
    file = saved(model.state_dict(), tmp_path / "file.pth")
    assert "norm_eps=1e-06, pixel_order='hwc'" in heard(file)[1][0]
    loaded, _ = heard(file, pixel_order="chw", norm_eps=1e-3)
    images, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 64)
    assert torch.equal(loaded(images, noise=noise).loss, model(images, noise=noise).loss)
