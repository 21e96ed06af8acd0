"""Checkpoints of ours and of the releases: what loads, what is refused, and with which words."""

import argparse
import json
import re
import zipfile

import pytest
import torch
from golden_cases import CASES, Case
from safetensors.torch import save_file

import crossmae


def same_weights(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def release_file(path, case, **arguments):
    """A file as the release's training script writes it."""
    torch.save({"model": case.weights, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(**arguments)}, path)
    return path


HEADS = {"num_heads": 3, "decoder_num_heads": 2}


@pytest.mark.parametrize("name", ["crossmae_vit_tiny_patch4", "mae_vit_tiny_patch4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_our_files_come_back_as_they_were(name, dtype, tmp_path):
    model = crossmae.create_model(name, image_size=(16, 24), channels=2, decoder_depth=1).to(dtype)
    crossmae.save(model, tmp_path / "model.safetensors")
    loaded = crossmae.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert same_weights(model, loaded)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    images = torch.randn(1, 2, 16, 24, dtype=dtype)
    assert torch.equal(loaded.encode(images), model.encode(images))
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("name", CASES)
def test_release_files_are_recognised(name, tmp_path):
    case = Case(name)
    expected = crossmae.from_release(case.weights, **case.arguments)
    told = {key: case.arguments[key] for key in ("norm_pix_loss", "use_fm", "use_input") if key in case.arguments}
    path = release_file(tmp_path / "checkpoint.pth", case, input_size=case.arguments["img_size"], **told)
    loaded = crossmae.load(path, **HEADS)
    assert loaded.config == expected.config
    assert same_weights(loaded, expected)


def test_a_bare_state_dict_and_safetensors_under_release_names_load(tmp_path):
    case = Case("crossmae_interblock_input")
    torch.save(case.weights, tmp_path / "bare.pth")
    save_file(case.weights, tmp_path / "converted.safetensors")
    expected = crossmae.from_release(case.weights, **case.arguments)
    for name in ("bare.pth", "converted.safetensors"):
        loaded = crossmae.load(tmp_path / name, norm_pix_loss=True, **HEADS)
        assert loaded.config == expected.config
        assert same_weights(loaded, expected)


def test_loaded_weights_are_copies():
    case = Case("mae")
    model = crossmae.from_release(case.weights, **case.arguments)
    before = case.weights["mask_token"].clone()
    with torch.no_grad():
        model.decoder.mask_token.add_(1)
    assert torch.equal(case.weights["mask_token"], before)


@pytest.mark.parametrize("name", CASES)
def test_to_release_inverts_from_release(name):
    case = Case(name)
    back = crossmae.to_release(crossmae.from_release(case.weights, **case.arguments).state_dict())
    assert back.keys() == case.weights.keys()
    assert all(torch.equal(back[key], case.weights[key]) for key in back)


def test_to_release_refuses_foreign_names():
    with pytest.raises(ValueError, match=r"'fc.weight' is not a tensor"):
        crossmae.to_release({"fc.weight": torch.zeros(1)})


def test_minus_one_alone_means_every_block_unless_there_is_one_map():
    case = Case("crossmae_subset_maps")
    arguments = {**case.arguments, "use_fm": [-1]}
    every = {**case.weights, "wfm.linear.weight": torch.zeros(2, 3)}
    assert crossmae.from_release(every, **arguments).config.feature_maps == (1, 2, 3)
    last = {**case.weights, "wfm.linear.weight": torch.zeros(2, 1)}
    assert crossmae.from_release(last, **arguments).config.feature_maps == (3,)


def test_every_tensor_that_does_not_fit_is_named():
    case = Case("mae")
    wrong = dict(case.weights)
    del wrong["norm.bias"]
    wrong["head.weight"] = torch.zeros(10, 24)
    wrong["mask_token"] = torch.zeros(1, 1, 12)
    message = (
        r"missing norm.bias \(24,\); unexpected head.weight \(10, 24\); "
        r"mask_token must have shape \(1, 1, 16\), got \(1, 1, 12\)"
    )
    with pytest.raises(ValueError, match=message):
        crossmae.from_release(wrong, **case.arguments)


def test_unknown_release_arguments_are_refused():
    with pytest.raises(TypeError, match=r"no argument width; there are img_size"):
        crossmae.from_release({}, width=3)


def test_unknown_heads_are_asked_for(tmp_path):
    with pytest.raises(
        ValueError, match=r"encoder width 24, decoder width 16\); pass num_heads= and decoder_num_heads="
    ):
        crossmae.load(release_file(tmp_path / "checkpoint.pth", Case("mae")))


class Evil:
    """What a pickle must not be able to do."""

    def __reduce__(self):
        return (print, ("code was run",))


def damaged_files(folder):
    model = crossmae.create_model("mae_vit_tiny_patch4", encoder_depth=1, decoder_depth=1)
    crossmae.save(model, folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    torch.save(model.state_dict(), folder / "whole.pth")
    (folder / "torn.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "head.safetensors").write_bytes(whole[:100])
    (folder / "torn.pth").write_bytes((folder / "whole.pth").read_bytes()[:20000])
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("not a checkpoint at all")
    torch.save({"model": Evil()}, folder / "evil.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save({}, folder / "nothing_in_it.pth")
    torch.save({"epoch": 3, "model": {"weight": [1.0]}}, folder / "lists.pth")
    torch.save({name: tensor.numpy() for name, tensor in model.state_dict().items()}, folder / "numpy.pth")
    torch.save(torch.optim.AdamW(model.parameters()).state_dict(), folder / "optimizer.pth")
    flipped = bytearray((folder / "whole.pth").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "flipped.pth").write_bytes(flipped)
    torch.save({"model": {"weight": torch.zeros(2)}}, folder / "foreign.pth")
    with zipfile.ZipFile(folder / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    save_file({"x": torch.zeros(1)}, folder / "config.safetensors", metadata={"crossmae_config": '{"patch_size": 4}'})
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torn.safetensors", "damaged safetensors"),
        ("head.safetensors", "damaged safetensors"),
        ("torn.pth", "is not a checkpoint, or is damaged"),
        ("empty.pth", "is not a checkpoint but empty"),
        ("text.pth", "is not a checkpoint, or is damaged"),
        ("archive.pth", "is not a checkpoint, or is damaged"),
        ("evil.pth", r"holds objects of \S*print, which are never unpickled"),
        ("list.pth", "must hold a state dict .* got list"),
        ("nothing_in_it.pth", "must hold a state dict .* got an empty dict"),
        ("lists.pth", "must hold a state dict .* got a dict of epoch, model without tensors by name"),
        ("numpy.pth", r"must hold a state dict .* got a dict of encoder.cls_token, .* more without tensors by name"),
        ("optimizer.pth", "must hold a state dict .* got a dict of state, param_groups without tensors by name"),
        ("flipped.pth", r"or is damaged: .*: the checksum of \S+/data/\d+ does not fit"),
        ("foreign.pth", "neither a checkpoint of ours nor of the CrossMAE or MAE release: it has no cls_token"),
        ("config.safetensors", "holds a configuration without image_size, channels, encoder_width"),
    ],
)
def test_what_is_no_checkpoint_is_refused(name, message, tmp_path, capsys):
    damaged_files(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        crossmae.load(tmp_path / name)
    assert name in str(caught.value)
    assert capsys.readouterr().out == ""


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint file .*nothing.pth"):
        crossmae.load(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        crossmae.save(crossmae.create_model("mae_vit_tiny_patch4"), tmp_path / "no" / "model.safetensors")


def test_our_files_with_a_tensor_missing_name_it(tmp_path):
    model = crossmae.create_model("mae_vit_tiny_patch4")
    crossmae.save(model, tmp_path / "whole.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        metadata = file.metadata()
    state = model.state_dict()
    del state["decoder.mask_token"]
    save_file(state, tmp_path / "less.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=re.escape("missing decoder.mask_token (1, 1, 64)")):
        crossmae.load(tmp_path / "less.safetensors")
    with pytest.raises(TypeError, match="stores its configuration; remove num_heads"):
        crossmae.load(tmp_path / "whole.safetensors", num_heads=3)


def test_files_from_before_a_field_was_there(tmp_path):
    model = crossmae.create_model("mae_vit_tiny_patch4")
    config = model.config.to_dict()
    assert config.pop("norm_eps") == 1e-6
    save_file(model.state_dict(), tmp_path / "old.safetensors", metadata={"crossmae_config": json.dumps(config)})
    assert crossmae.load(tmp_path / "old.safetensors").config == model.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zzz": 1, "yyy": None}, r"was written by a newer version: unknown field yyy, zzz"),
        ({"encoder_heads": ...}, r"holds a configuration without encoder_heads"),
        ({"image_size": ..., "decoder": ...}, r"holds a configuration without image_size, decoder"),
        ({"encoder_heads": None}, r"encoder_heads must be an integer, got None"),
        ({"encoder_heads": 5}, r"encoder_heads must divide encoder_width 96, got 5"),
        ({"image_size": "32"}, r"image_size must be \(height, width\), 2 integers, got '32'"),
        ({"image_size": None}, r"image_size must be .*, got None"),
        ({"feature_maps": 5}, r"feature_maps must be a tuple of integers or None, got 5"),
        ({"drop_path": "a"}, r"drop_path must be a number, got 'a'"),
        ({"normalize_targets": "False"}, r"normalize_targets must be True or False, got 'False'"),
        ("{", "configuration that cannot be read"),
        ("[1]", r"must hold its configuration as a JSON object, got '\[1\]'"),
        ("null", r"must hold its configuration as a JSON object"),
    ],
)
def test_our_files_with_another_configuration_name_the_field(change, message, tmp_path):
    model = crossmae.create_model("mae_vit_tiny_patch4", encoder_depth=1, decoder_depth=1)
    config = change
    if isinstance(change, dict):
        config = {name: value for name, value in {**model.config.to_dict(), **change}.items() if value is not ...}
        config = json.dumps(config)
    save_file(model.state_dict(), tmp_path / "file.safetensors", metadata={"crossmae_config": config})
    with pytest.raises(ValueError, match=rf"file.safetensors .*{message}") as caught:
        crossmae.load(tmp_path / "file.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wide", "dtype"),
    [
        (["pos_embed", "decoder_pos_embed"], torch.float32),
        (["pos_embed"], torch.float32),
        (["norm.bias"], torch.float64),
    ],
)
@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
def test_a_model_has_one_dtype(wide, dtype, narrow, tmp_path):
    weights = {name: t.double() if name in wide else t.to(narrow) for name, t in Case("mae").weights.items()}
    torch.save(weights, tmp_path / "file.pth")
    model = crossmae.load(tmp_path / "file.pth", norm_pix_loss=True, **HEADS)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert model(torch.randn(2, 3, 32, 32, dtype=dtype)).loss.isfinite()
    assert torch.equal(model.encoder.norm.bias, weights["norm.bias"].to(dtype))


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_text("old")

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        crossmae.save(crossmae.create_model("mae_vit_tiny_patch4"), path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_positions_are_interpolated_on_request(tmp_path):
    model = crossmae.create_model("crossmae_vit_tiny_patch4", image_size=32)
    crossmae.save(model, tmp_path / "model.safetensors")
    larger = crossmae.load(tmp_path / "model.safetensors", image_size=(64, 48))
    assert larger.config.image_size == (64, 48)
    old = model.encoder.positions[0, 1:].view(8, 8, -1)
    new = larger.encoder.positions[0, 1:].view(16, 12, -1)
    # Same angles at the same relative places: the frequencies shrink with the grid.
    assert torch.equal(larger.encoder.positions[:, :1], model.encoder.positions[:, :1])
    expected = torch.nn.functional.interpolate(
        old.permute(2, 0, 1)[None], size=(16, 12), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(new, expected[0].permute(1, 2, 0))
    assert larger.encode(torch.zeros(1, 3, 64, 48)).shape == (1, 16 * 12 + 1, 96)
