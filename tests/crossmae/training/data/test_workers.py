"""Worker processes, on systems that start them in different ways."""

import io
import multiprocessing
import pickle
import sys
import tarfile
from itertools import islice

import pytest
import torch
from pictures import encoded, messy_folder, smooth

from crossmae.training.data import shards
from crossmae.training.data.batches import loader
from crossmae.training.data.config import DataConfig
from crossmae.training.data.factory import open_images
from crossmae.training.data.sampling import GlobalBatches


def folder_of(place):
    return messy_folder(place, images=5)


def shards_of(place):
    with tarfile.open(place / "a.tar", "w") as tar:
        for i in range(8):
            for name, content in ((f"{i}.jpg", encoded(smooth(i, 40, 50), "JPEG")), (f"{i}.cls", b"%d" % (i % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return place / "a.tar"


SOURCES = {"folder": folder_of, "shards": shards_of, "bundled": lambda place: "digits"}


def opened(where):
    return open_images(DataConfig(str(where)), 3, (32, 48), mask_noise=24)


def contents(batch):
    return [batch.images, batch.noise, batch.labels], batch.unreadable


def alike(some, others):
    for (tensors, unreadable), (as_tensors, as_unreadable) in zip(
        map(contents, some), map(contents, others), strict=True
    ):
        assert all(map(torch.equal, tensors, as_tensors))
        assert unreadable == as_unreadable


@pytest.mark.parametrize(("platform", "method"), [("linux", "fork"), ("darwin", "spawn"), ("win32", "spawn")])
def test_workers_are_forked_on_linux_alone(platform, method, monkeypatch):
    """macOS has fork, and system libraries that do not survive it; Windows has none."""
    monkeypatch.setattr(sys, "platform", platform)
    made = loader(opened("digits"), [[(0, 0)]], workers=1)
    assert made.multiprocessing_context.get_start_method() == method


@pytest.mark.parametrize("kind", SOURCES)
def test_a_spawned_worker_gets_the_same_data_set(kind, tmp_path):
    dataset = opened(SOURCES[kind](tmp_path))
    made = loader(dataset, [[(0, 0)]], workers=0)
    sent = pickle.loads(pickle.dumps((made.dataset, made.collate_fn, made.worker_init_fn)))
    alike([sent[1]([sent[0][3, i] for i in range(8)])], [made.collate_fn([dataset[3, i] for i in range(8)])])
    assert sent[2] is made.worker_init_fn


def test_spawned_workers_make_the_same_batches(tmp_path, monkeypatch):
    dataset = opened(shards_of(tmp_path))
    order = GlobalBatches(len(dataset), 4, seed=1)
    alone = list(islice(loader(dataset, order, workers=0), 5))
    monkeypatch.setattr(sys, "platform", "darwin")
    before = set(multiprocessing.active_children())
    spawned = loader(dataset, order, workers=1)
    batches = iter(spawned)
    alike(alone, list(islice(batches, 5)))
    (child,) = set(multiprocessing.active_children()) - before
    assert type(child).__name__ == "SpawnProcess"


def test_patterns_of_shards_may_have_the_backslashes_of_windows(tmp_path, monkeypatch):
    names = [str(tmp_path / f"a\\b{i}.tar") for i in range(2)]
    for name in names:
        with open(name, "wb"):
            pass
    monkeypatch.setattr(shards.os, "sep", "\\")
    monkeypatch.setattr(shards.glob, "has_magic", lambda name: False)
    assert [str(path) for path in shards.expanded(str(tmp_path / "a\\b{0..1}.tar"))] == names
