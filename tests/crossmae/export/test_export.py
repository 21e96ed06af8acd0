"""What holds of every target."""

from itertools import product
from typing import get_args

import pytest
import torch
from exports import KINDS, model_of

import crossmae
from crossmae.export import Target
from crossmae.model.config import Config

TARGETS = get_args(Target)
FOLDERS = ("timm", "hf")

MORE_CLASS_TOKENS = [(target, count) for target in ("timm", "hf", "torchvision", "release") for count in (0, 8)]

# Every field has to be said to a library, refused or of no consequence there; one that is new must be thought of first.
FIELDS = {
    "image_size", "patch_size", "channels", "encoder_width", "encoder_depth", "encoder_heads", "mlp_ratio", "norm_eps",
    "decoder", "decoder_width", "decoder_depth", "decoder_heads", "feature_maps", "decoder_self_attention",
    "normalize_targets", "decoder_norm_eps", "class_tokens", "no_embed_class", "pos_embed", "decoder_pos_embed",
    "final_norm", "last_mix_norm", "decoder_class_token", "pixel_order",
    "pixel_mean", "pixel_std", "pixel_numbers", "pixel_nodata",
    "drop_path", "gradient_checkpointing", "hidden_layer", "residual",
}  # fmt: skip


def test_no_field_is_forgotten():
    assert set(Config.__dataclass_fields__) == FIELDS


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_exported_is_a_copy_on_the_cpu(target):
    model = model_of("mixing")
    exported = crossmae.export(model, target)
    for tensor in exported.state.values():
        tensor.zero_()
    assert all(float(tensor.abs().max()) > 0 for tensor in model.state_dict().values())
    assert all(note and "\n" not in note for note in exported.notes)


@pytest.mark.parametrize("target", TARGETS)
def test_dtypes_are_kept_and_half_precision_too(target):
    assert {t.dtype for t in crossmae.export(model_of("MAE").bfloat16(), target).state.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("target", "kind"), [pair for pair in product(TARGETS, KINDS) if pair != ("release", "one map")]
)
def test_a_decoder_that_is_left_out_is_named(target, kind):
    exported = crossmae.export(model_of(kind), target)
    left_out = any(note.startswith("the decoder is left out") for note in exported.notes)
    holds = any("mask_token" in name for name in exported.state)
    assert (left_out or holds) == (kind != "alone")
    assert not (left_out and holds)


@pytest.mark.parametrize(("target", "count"), MORE_CLASS_TOKENS)
def test_class_tokens_that_there_is_no_place_for(target, count):
    with pytest.raises(ValueError, match=f"cannot be exported to .* it needs one class token, got {count}$"):
        crossmae.export(model_of("mixing", class_tokens=count), target)


def test_another_target():
    with pytest.raises(
        ValueError, match="target must be one of timm, hf, torchvision, detectron2, release, got 'keras'"
    ):
        crossmae.export(model_of("MAE"), "keras")


def test_another_model():
    with pytest.raises(TypeError, match=r"model must be a MaskedAutoencoder, as crossmae.load returns, got Linear"):
        crossmae.export(torch.nn.Linear(2, 2), "timm")


@pytest.mark.parametrize("target", FOLDERS)
def test_nothing_is_written_over_or_half(target, tmp_path, monkeypatch):
    exported = crossmae.export(model_of("MAE"), target)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="taken: it is not empty; choose a new or an empty folder"):
        exported.save(tmp_path / "taken")
    with pytest.raises(NotADirectoryError, match=r"notes.txt: it is a file"):
        exported.save(tmp_path / "taken" / "notes.txt")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        exported.save(tmp_path / "no" / "folder")
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as broken:
        broken.setattr("pathlib.Path.write_text", _full)
        with pytest.raises(OSError, match="disk is full"):
            exported.save(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "taken"]
    exported.save(tmp_path / "empty")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "taken"]


def _full(*_):
    raise OSError("disk is full")


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in FOLDERS])
def test_a_file_is_replaced_whole_or_not_at_all(target, tmp_path, monkeypatch):
    exported = crossmae.export(model_of("MAE"), target)
    (tmp_path / "file.pth").write_text("mine")
    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", _full)
        with pytest.raises(OSError, match="disk is full"):
            exported.save(tmp_path / "file.pth")
    assert (tmp_path / "file.pth").read_text() == "mine"
    exported.save(tmp_path / "file.pth")
    assert isinstance(torch.load(tmp_path / "file.pth", weights_only=True), dict)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]
