"""What is unpickled and what never is; shards and their index."""

import argparse
import json
import os
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from checkpoint_files import HEADS, agrees_with_the_release, heard, saved
from golden_cases import Case
from safetensors.torch import save_file

import crossmae

WEIGHTS = Case("mae").weights


class Made:
    """Is pickled as a call of something by name."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PATHS = {
    "own": lambda: pathlib.Path("/data"),
    "pure": lambda: pathlib.PurePosixPath("/data"),
    "of Linux": lambda: Made(pathlib.PosixPath, "/", "data"),
    "of Windows": lambda: Made(pathlib.WindowsPath, "C:\\", "data"),
    "pure, of Windows": lambda: pathlib.PureWindowsPath("C:\\data"),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("path", PATHS)
def test_paths_of_every_system_in_the_arguments(path, prefix, tmp_path):
    arguments = argparse.Namespace(norm_pix_loss=True, output_dir=PATHS[path](), nested={"log_dir": [PATHS[path]()]})
    content = {"model": {f"{prefix}{name}": tensor for name, tensor in WEIGHTS.items()}, "args": arguments}
    model, messages = heard(saved(content, tmp_path / "checkpoint-799.pth"), **HEADS)
    assert agrees_with_the_release(model, "mae")
    assert not messages


@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PurePosixPath"])
def test_paths_pickled_by_python_3_13(name, tmp_path, monkeypatch):
    module = types.ModuleType("pathlib._local")
    made = type(name, (), {"__module__": "pathlib._local", "__reduce__": lambda self: (type(self), ("data",))})
    setattr(module, name, made)
    monkeypatch.setitem(sys.modules, "pathlib._local", module)
    path = saved({"model": WEIGHTS, "args": argparse.Namespace(norm_pix_loss=True, out=made())}, tmp_path / "file.pth")
    monkeypatch.undo()
    assert agrees_with_the_release(crossmae.load(path, **HEADS), "mae")


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_beside_the_weights(zipped, tmp_path):
    beside = {
        "args": {"norm_pix_loss": True, "input_size": 32},
        "plain": [None, {1, 2}, torch.bfloat16, torch.device("cpu"), torch.Size([2]), torch.tensor(1.0)],
        "torch": torch.__version__,
        "scores": [np.float64(0.5), np.int64(3), np.bool_(True), np.ones(3), np.ones((2, 2), dtype=np.int32)],
        "generators": [np.random.default_rng(0).bit_generator.state, ("MT19937", np.ones(624, "u4"), 1)],
    }
    path = tmp_path / "file.safetensors"  # whatever its name is
    torch.save({"model": WEIGHTS, **beside}, path, _use_new_zipfile_serialization=zipped)
    model, messages = heard(path, **HEADS)
    assert agrees_with_the_release(model, "mae")
    assert not messages


def run(words):
    print("code was run", words)


class Subclass(argparse.Namespace):
    pass


EVIL = {
    "a function": lambda: Made(run, "x"),
    "a builtin": lambda: Made(print, "code was run"),
    "eval": lambda: Made(eval, "print('code was run')"),
    "a command": lambda: Made(os.system, "echo code was run"),
    "a file": lambda: Made(pathlib.Path.touch, "evil"),
    "a class of one's own": lambda: Subclass(norm_pix_loss=True),
    "a whole model": lambda: torch.nn.Linear(2, 2),
    "an array of something": lambda: np.array([Made(print, "code was run")], dtype=object),
}


@pytest.mark.parametrize("place", ["args", "model", "within args", "beside", "in the state dict"])
@pytest.mark.parametrize("evil", EVIL)
def test_nothing_else_is_unpickled(evil, place, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = EVIL[evil]()
    content = {
        "args": {"model": WEIGHTS, "args": thing},
        "model": {"model": thing},
        "within args": {"model": WEIGHTS, "args": argparse.Namespace(out=thing)},
        "beside": {"model": WEIGHTS, "hook": [thing]},
        "in the state dict": {"model": {**WEIGHTS, "_metadata": thing}},
    }[place]
    path = saved(content, tmp_path / "evil.pth")
    with pytest.raises(
        ValueError, match=r"evil.pth holds objects of \S+, which are never unpickled; .*state_dict"
    ) as caught:
        crossmae.load(path, **HEADS)
    assert "\n" not in str(caught.value)
    assert "code was run" not in capfd.readouterr().out
    assert not (tmp_path / "evil").exists()


JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


@pytest.mark.parametrize("name", ["file.pth", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>404</html>", "but an HTML or XML page"),
        (b"\n <HTML>\n<body>", "but an HTML or XML page"),
        (POINTER, "but a git-LFS pointer: fetch the file itself with git lfs pull"),
        (b'{"a": 1}', "but JSON"),
        (b'{"mode":{"a": 1}}', "but JSON"),
        (b'[\n  {"a": 1}]', "but JSON"),
        (JPEG, "but an image"),
        (b"\x89PNG\r\n\x1a\n" + JPEG, "but an image"),
        (b"", "but empty"),
        (bytes(9), "but zeros"),
        (bytes(100_000), "but zeros"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "but an HDF5 file"),
        (b"\x1f\x8b\x08" + bytes(99), "but compressed"),
        (b"something else", "or is damaged: neither a safetensors file nor one written by torch.save"),
        (pickle.dumps({"model": {"a": 1}}), "or is damaged: neither a safetensors file nor one written by torch.save"),
        (
            pickle.dumps({"model": {"a": 1}}, 2),
            "or is damaged: neither a safetensors file nor one written by torch.save",
        ),
    ],
)
def test_what_a_file_is_instead_is_said(content, what, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a checkpoint,? {what}") as caught:
        crossmae.load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_run_no_code(protocol, tmp_path, capfd):
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps({"model": Made(os.system, "echo code was run")}, protocol))
    message = r"holds objects of \w+.system, which are never unpickled" if protocol else "is not a checkpoint"
    with pytest.raises(ValueError, match=f"file.pkl {message}") as caught:
        crossmae.load(path)
    assert "weights_only" not in str(caught.value)
    assert "code was run" not in capfd.readouterr().out


def test_what_is_elsewhere_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(WEIGHTS, tmp_path / "model.safetensors")
    for url in ("https://example.org/mae.pth", "s3://bucket/mae.pth", "hf://facebook/vit-mae-base"):
        with pytest.raises(FileNotFoundError, match=f"{url} is a URL, and nothing is downloaded"):
            crossmae.load(url)
    for hub in ("facebook/vit-mae-base", "timm/vit_base_patch16_224.mae"):
        with pytest.raises(FileNotFoundError, match=rf"no checkpoint file {hub}; .* hub: nothing is downloaded"):
            crossmae.load(hub)
    for file in ("run/file.pth", "checkpoint", "a/b/c", ""):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint file {file or repr(file)}$"):
            crossmae.load(file)


def test_a_folder_without_a_model_is_looked_into(tmp_path):
    with pytest.raises(FileNotFoundError, match="in the folder, which holds nothing, and no"):
        crossmae.load(tmp_path)
    saved(WEIGHTS, tmp_path / "checkpoint-799.pth")
    (tmp_path / "logs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder, which holds checkpoint-799\.pth, logs/, and no"):
        crossmae.load(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_says_how_to_make_it_one_file(tmp_path):
    torch.distributed.checkpoint.save({"model": WEIGHTS}, checkpoint_id=tmp_path / "run", no_dist=True)
    with pytest.raises(
        FileNotFoundError, match=r"is a distributed checkpoint, which .*dcp_to_torch_save makes one file"
    ):
        crossmae.load(tmp_path / "run")


def test_files_without_checksums_are_read(tmp_path):
    """PyTorch leaves them out on request, and then writes others in their place."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "unchecked.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    with pytest.warns(crossmae.CheckpointWarning, match="norm_pix_loss"):
        crossmae.load(tmp_path / "unchecked.pth", num_heads=4, decoder_num_heads=2)


def shards(folder, kind="safetensors", parts=3):
    """The weights in several files with an index."""
    folder.mkdir(exist_ok=True)
    base = "model" if kind == "safetensors" else "pytorch_model"
    places = {}
    for part in range(parts):
        names = sorted(WEIGHTS)[part::parts]
        name = f"{base}-{part + 1:05d}-of-{parts:05d}.{kind}"
        held = {name: WEIGHTS[name] for name in names}
        save_file(held, folder / name) if kind == "safetensors" else torch.save(held, folder / name)
        places |= dict.fromkeys(names, name)
    index = folder / f"{base}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(kind, tmp_path):
    index = shards(tmp_path / "folder", kind)
    for path in (index, index.parent):
        model, messages = heard(path, norm_pix_loss=True, **HEADS)
        assert agrees_with_the_release(model, "mae")
        assert not messages


def damage(index, how):
    first = sorted(index.parent.glob("model-*"))[0]
    listed = json.loads(index.read_text())
    if how == "missing":
        first.unlink()
    elif how == "torn":
        first.write_bytes(first.read_bytes()[:-100])
    elif how == "empty":
        first.write_bytes(b"")
    elif how == "twice":
        second = sorted(index.parent.glob("model-*"))[1]
        save_file({name: WEIGHTS[name] for name in [*sorted(WEIGHTS)[1::3], sorted(WEIGHTS)[0]]}, second)
    elif how == "less":
        save_file({name: WEIGHTS[name] for name in sorted(WEIGHTS)[3::3]}, first)
    elif how == "outside":
        listed["weight_map"]["mask_token"] = "../model.safetensors"
    elif how == "itself":
        listed["weight_map"]["mask_token"] = index.name
    elif how == "no map":
        listed = {"metadata": {}}
    elif how == "numbers":
        listed["weight_map"]["mask_token"] = 3
    elif how == "list":
        listed = []
    index.write_text("{" if how == "no JSON" else json.dumps(listed))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"index.json lists model-00001-of-00003.safetensors \(1 of 3 shards\), which are missing"),
        ("torn", r"model-00001-of-00003.safetensors is a damaged safetensors file"),
        ("empty", r"model-00001-of-00003.safetensors is not a checkpoint but empty"),
        ("twice", r"model-00002-of-00003.safetensors has extra, unlike model.safetensors.index.json: blocks.0"),
        ("less", r"model-00001-of-00003.safetensors lacks, unlike model.safetensors.index.json: blocks.0"),
        ("outside", r"an index of shards: .*'../model.safetensors' is not the name of a file next to it"),
        ("itself", r"an index of shards: .*is not the name of a file next to it"),
        ("no map", "an index of shards: KeyError"),
        ("numbers", "an index of shards: TypeError"),
        ("list", "an index of shards: TypeError"),
        ("no JSON", "an index of shards: JSONDecodeError"),
    ],
)
def test_damaged_shards_are_one_line(how, message, tmp_path):
    index = shards(tmp_path / "folder")
    damage(index, how)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        crossmae.load(index.parent, norm_pix_loss=True, **HEADS)
    assert "\n" not in str(caught.value)


def test_torn_files_of_any_length_are_one_line(tmp_path):
    for name in ("model.safetensors", "model.pth"):
        path = tmp_path / name
        save_file(WEIGHTS, path) if name.endswith("safetensors") else torch.save({"model": WEIGHTS}, path)
        whole = path.read_bytes()
        for length in [*range(12), *range(12, len(whole), len(whole) // 12)]:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=rf"{name} is (not a checkpoint|a damaged)") as caught:
                crossmae.load(path, **HEADS)
            assert "\n" not in str(caught.value)
