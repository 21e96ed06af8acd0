"""``crossmae convert`` from the command line."""

import re

import pytest
import torch
from checkpoint_files import heard
from exports import model_of, weights_of

import crossmae
from crossmae.commands.cli import main


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    crossmae.save(model_of("mixing"), path)
    return path


@pytest.mark.parametrize("to", ["timm", "hf", "torchvision", "detectron2", "release"])
def test_a_checkpoint_and_what_is_said(to, checkpoint, tmp_path, capsys):
    assert main(["convert", str(checkpoint), str(tmp_path / "out"), "--to", to]) == 0
    printed = capsys.readouterr().out.splitlines()
    exported = crossmae.export(crossmae.load(checkpoint), to)
    assert printed[:-1] == [f"- {note}" for note in exported.notes]
    assert re.fullmatch(rf"Written for {to}: .*out, {len(exported.state)} tensors, 0.\d MB", printed[-1])


def test_options_of_load(checkpoint, tmp_path, capsys):
    torch.save(weights_of(crossmae.load(checkpoint)), tmp_path / "vit.pth")
    words = ["convert", str(tmp_path / "vit.pth"), str(tmp_path / "hf"), "--to", "hf", "--load-options.num-heads", "3"]
    assert main([*words, "--load-options.image-size", "64"]) == 0
    said = capsys.readouterr().out
    assert "not in the file, so assumed unless passed to load: img_size=(32, 32), norm_eps=1e-06" in said
    assert heard(tmp_path / "hf")[0].config.image_size == (64, 64)


def test_refusals_come_before_work_and_are_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as unread:
        unread.setattr("crossmae.commands.convert.load_aloud", lambda *_: pytest.fail("it was read"))
        for out, to in ((tmp_path, "timm"), (tmp_path, "release"), (tmp_path / "no" / "out", "hf")):
            assert main(["convert", str(checkpoint), str(out), "--to", to]) == 1
            assert re.fullmatch(r"crossmae convert: cannot write .*\n", capsys.readouterr().err)
        before = checkpoint.read_bytes()
        assert main(["convert", str(checkpoint), str(checkpoint), "--to", "release"]) == 1
        assert "model.safetensors exists and is not overwritten" in capsys.readouterr().err
        assert checkpoint.read_bytes() == before
    crossmae.save(model_of("one map"), checkpoint)
    for words, message in (
        (["--to", "release"], "cannot run a decoder without inter-block attention"),
        (["--to", "hf", "--load_options.num_heads", "3"], "stores its configuration; remove num_heads"),
    ):
        assert main(["convert", str(checkpoint), str(tmp_path / "out"), *words]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
