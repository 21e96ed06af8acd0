"""What is found under a path, and what is said where there is nothing."""

import json
import os
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from pictures import encoded, random_pixels

from crossmae.training.data.factory import find_sources
from crossmae.training.data.source import PackedNames


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(random_pixels(seed, 6, 7, 3), "PNG"))


def loaded(source):
    return [source.load(i, 3, torch.uint8).permute(1, 2, 0).numpy() for i in range(len(source))]


def labels(source):
    return [source.label(i) for i in range(len(source))]


def assert_pixels(source, seeds):
    for image, seed in zip(loaded(source), seeds, strict=True):
        assert (image == random_pixels(seed, 6, 7, 3)).all()


def test_a_flat_folder(tmp_path):
    for seed, name in enumerate(["a.png", "b.PNG", "c d.jpeg"]):
        picture(tmp_path / name, seed)
    picture(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = find_sources(str(tmp_path))
    assert_pixels(found.training, [0, 1, 2])
    assert found.evaluation is None
    assert not found.training.labelled
    assert labels(found.training) == [-1, -1, -1]


def test_subfolders_are_classes(tmp_path):
    for seed, name in enumerate(["cat/1.png", "cat/deep/2.png", "dog/1.png"]):
        picture(tmp_path / name, seed)
    source = find_sources(str(tmp_path)).training
    assert_pixels(source, [0, 1, 2])
    assert source.classes == ("cat", "dog")
    assert labels(source) == [0, 0, 1]


def test_where_images_lie_beside_subfolders_there_are_no_classes(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "1.png"):
        picture(tmp_path / name)
    assert not find_sources(str(tmp_path)).training.labelled
    (tmp_path / "1.png").unlink()
    assert find_sources(str(tmp_path)).training.labelled
    assert not find_sources(str(tmp_path / "cat")).training.labelled


def test_imagenet(tmp_path):
    for seed, name in enumerate(["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/b/1.png", "val/c/2.png"]):
        picture(tmp_path / name, seed)
    found = find_sources(str(tmp_path))
    assert_pixels(found.training, [0, 1, 2])
    assert_pixels(found.evaluation, [3, 4])
    assert labels(found.training) == [0, 1, 2]
    assert labels(found.evaluation) == [1, 2]
    apart = find_sources(str(tmp_path / "train"), str(tmp_path / "val"))
    assert labels(apart.evaluation) == [1, 2]
    picture(tmp_path / "val" / "unheard" / "1.png")
    with pytest.raises(ValueError, match="val has classes that the training images lack: unheard"):
        find_sources(str(tmp_path))


def test_links_are_followed_but_not_in_circles(tmp_path):
    picture(tmp_path / "elsewhere" / "1.png", 5)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "images")
    assert_pixels(find_sources(str(tmp_path / "images")).training, [5])


def test_names_in_no_encoding(tmp_path):
    os.mkdir(tmp_path / "d")
    with open(os.fsencode(tmp_path / "d") + b"/gr\xfc\xdfe.png", "wb") as file:
        file.write(b"broken")
    source = find_sources(str(tmp_path / "d")).training
    with pytest.raises(ValueError, match="cannot be read") as error:
        source.load(0, 3, torch.uint8)
    assert r"gr\xfc\xdfe.png" in str(error.value).encode().decode()


def test_names_that_would_break_a_line(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "two\nlines \x1b[31m 日本 é.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read") as error:
        find_sources(str(tmp_path / "d")).training.load(0, 3, torch.uint8)
    assert r"two\nlines \x1b[31m 日本 é.png cannot" in str(error.value)
    with tarfile.open(tmp_path / "0.tar", "w") as file:
        file.add(tmp_path / "d" / "two\nlines \x1b[31m 日本 é.png", arcname="two\nlines é.png")
    with pytest.raises(ValueError, match="cannot be read") as error:
        find_sources(str(tmp_path / "*.tar")).training.load(0, 3, torch.uint8)
    assert r"0.tar/two\nlines é.png cannot" in str(error.value)


def test_names_are_a_sequence():
    strings = ["", "a", "grüße", "a/b", "\udcfc"]
    names = PackedNames(strings)
    assert list(names) == strings
    assert names[1:3] == strings[1:3]
    assert names[np.int64(3)] == "a/b"


def shard(path, samples):
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def sample(key, seed, **more):
    return {"__key__": key, "png": encoded(random_pixels(seed, 6, 7, 3), "PNG"), **more}


def test_shards_of_the_webdataset_library(tmp_path):
    shard(tmp_path / "s-000.tar", [sample("n/0", 0, cls=7), sample("n/1", 1, cls=3)])
    shard(tmp_path / "s-001.tar", [{"__key__": "no_image", "txt": "hello"}, sample("n/0.5", 2, json={"label": 11})])
    shard(tmp_path / "s-002.tar", [sample("x" * 150, 3, txt="long name"), sample("z", 4, cls=2)])
    for where in (tmp_path, tmp_path / "s-{000..002}.tar", tmp_path / "s-*.tar", tmp_path / "s-00[0-2].tar"):
        source = find_sources(str(where)).training
        assert_pixels(source, [0, 1, 2, 3, 4])
        assert labels(source) == [7, 3, 11, -1, 2]
        assert source.labelled
    one = find_sources(str(tmp_path / "s-001.tar"), str(tmp_path / "s-{000,002}.tar"))
    assert_pixels(one.training, [2])
    assert_pixels(one.evaluation, [0, 1, 3, 4])


def test_what_lies_beside_images_need_not_be_labels(tmp_path):
    shard(tmp_path / "s.tar", [sample("0", 0, json={"caption": "a picture"}), sample("1", 1, json=["?"])])
    source = find_sources(str(tmp_path)).training
    assert not source.labelled
    assert labels(source) == [-1, -1]


def test_a_broken_image_in_a_shard_is_named(tmp_path):
    shard(tmp_path / "s.tar", [{"__key__": "a/b", "jpg": b"broken"}])
    with pytest.raises(ValueError, match=r"s\.tar/a/b\.jpg cannot be read"):
        find_sources(str(tmp_path)).training.load(0, 3, torch.uint8)


def test_damaged_and_compressed_shards_are_refused(tmp_path):
    shard(tmp_path / "s.tar", [sample(str(i), i) for i in range(9)])
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"shard .*s\.tar is damaged"):
        find_sources(str(tmp_path))
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.add(tmp_path / "s.tar")
    with pytest.raises(ValueError, match=r"shard .*s\.tar is damaged, or compressed"):
        find_sources(str(tmp_path))
    shard(tmp_path / "s.tar", [{"__key__": "a", "json": json.dumps({})}])
    with pytest.raises(ValueError, match=r"there is no image in 1 shards"):
        find_sources(str(tmp_path))


def test_missing_shards_are_named(tmp_path):
    shard(tmp_path / "s-000.tar", [sample("0", 0)])
    with pytest.raises(FileNotFoundError, match=r"there is no .*s-001.tar, one of 2 missing shards of"):
        find_sources(str(tmp_path / "s-{000..002}.tar"))
    with pytest.raises(FileNotFoundError, match="there is no file that matches"):
        find_sources(str(tmp_path / "t-*.tar"))


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'digit' does not exist; .*bundled set \(digits, photographs\)"):
        find_sources("digit")
    with pytest.raises(FileNotFoundError, match="'' does not exist"):
        find_sources("")
    with pytest.raises(FileNotFoundError, match="'nowhere' does not exist"):
        find_sources("digits", "nowhere")
    with pytest.raises(ValueError, match=r"there is no image in .*; supported extensions: .*\.jpg"):
        find_sources(str(tmp_path))
    (tmp_path / "README.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"there is no image in .* but 1 other files"):
        find_sources(str(tmp_path))
    with pytest.raises(NotADirectoryError, match=r"README.txt is a file; expected a folder of images"):
        find_sources(str(tmp_path / "README.txt"))


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "1.png")
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", str(path))  # root may read everything
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(PermissionError, match="Permission denied"):
        find_sources(str(tmp_path))
