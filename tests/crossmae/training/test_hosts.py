"""Runs on systems that do things in other ways, simulated."""

import errno
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from pretraining import into, losses, small, weights

from crossmae.training import monitor
from crossmae.training.run import pretrain


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    pretrain(small(steps=2), into(folder))
    return folder


def same(folder, other):
    ours, theirs = weights(folder), weights(other)
    return ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def test_a_system_that_opens_no_folders_trains(trained, tmp_path, monkeypatch):
    open_ = os.open

    def opening(path, *arguments, **others):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_(path, *arguments, **others)

    monkeypatch.setattr(os, "open", opening)
    pretrain(small(steps=2), into(tmp_path))
    assert same(tmp_path, trained)


def test_a_model_that_somebody_reads_is_not_replaced_and_the_next_call_does(trained, tmp_path, monkeypatch):
    """As on Windows. The checkpoint is whole all the same, so the same command has no step left to take."""
    replace = os.replace

    def replacing(source, target):
        if Path(target).name == "model.safetensors" and Path(target).exists():
            raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    with pytest.raises(OSError, match=r"model.safetensors could not be replaced by the newest model, .*step-00000002"):
        pretrain(small(steps=2), into(tmp_path, save_every=1000))
    assert not same(tmp_path, trained)
    monkeypatch.setattr(os, "replace", replace)
    pretrain(small(steps=2), into(tmp_path))
    assert same(tmp_path, trained)
    assert list(losses(tmp_path)) == [0, 1]


def test_a_killed_run_of_the_same_process_number_left_half_a_checkpoint(trained, tmp_path):
    """In a container every run has the same."""
    half = tmp_path / "checkpoints" / f".step-00000000.{os.getpid()}"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    pretrain(small(steps=2), into(tmp_path))
    assert same(tmp_path, trained)


def test_a_run_in_a_thread_asks_for_no_signals(trained, tmp_path):
    """Python has them for the main thread alone."""
    thread = threading.Thread(target=pretrain, args=(small(steps=2), into(tmp_path)))
    thread.start()
    thread.join()
    assert same(tmp_path, trained)


@pytest.mark.parametrize(("platform", "used"), [("linux", 3 * 1024), ("darwin", 3)])
def test_macos_counts_memory_in_bytes(platform, used, monkeypatch):
    resource = SimpleNamespace(getrusage=lambda who: SimpleNamespace(ru_maxrss=3), RUSAGE_SELF=0)
    monkeypatch.setitem(sys.modules, "resource", resource)
    monkeypatch.setattr(monitor.sys, "platform", platform)
    monkeypatch.setattr(monitor.torch.cuda, "is_available", lambda: False)
    assert monitor._memory_in_use() == used


def test_a_checkpoint_to_start_from_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resume=.*nope is not a checkpoint of a run"):
        pretrain(small(), into(tmp_path, resume=str(tmp_path / "nope")))
