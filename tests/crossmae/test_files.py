"""Files that are written whole, on systems that differ in what they let one do with folders and open files."""

import ast
import errno
import os
from pathlib import Path

import pytest

from crossmae.files import make_folder, replacing, require_folder_of, to_disk

ROOT = Path(__file__).parents[2]


def test_a_failure_names_the_file_that_was_asked_for(tmp_path):
    def write():
        with replacing(tmp_path / "a.txt") as beside:
            beside.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device", str(beside))

    with pytest.raises(OSError, match="No space left") as raised:
        write()
    assert raised.value.filename == str(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_a_file_that_somebody_reads_cannot_be_replaced_on_windows(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")

    def replace(source, target):
        raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError) as raised, replacing(tmp_path / "a.txt") as beside:
        beside.write_text("new")
    assert (raised.value.filename, raised.value.filename2) == (str(tmp_path / "a.txt"), None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_a_killed_process_of_the_same_number_left_is_not_written_into(tmp_path):
    """In containers all runs have one process number; the file beside may be a link to a checkpoint's."""
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    os.link(kept, tmp_path / f".a.txt.{os.getpid()}")
    with replacing(tmp_path / "a.txt") as beside:
        beside.write_text("new")
    assert (kept.read_text(), (tmp_path / "a.txt").read_text()) == ("kept", "new")


def test_where_no_file_can_be_written_is_known_before(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        require_folder_of(tmp_path / "no" / "a.txt")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        require_folder_of(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match="no permission"):
        require_folder_of(tmp_path / "a.txt")


@pytest.mark.parametrize("below", [".", "run", "run/deeper"])
def test_a_file_in_the_place_of_a_folder(below, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="it is a file, or is below one"):
        make_folder(tmp_path / "file" / below)
    make_folder(tmp_path / "a" / below)
    make_folder(tmp_path / "a" / below)
    assert (tmp_path / "a" / below).is_dir()


def synced(folder, monkeypatch, open_error=None, fsync_error=None):
    """Names of what ``to_disk`` syncs, on a system where a folder fails in one of two ways."""
    names = []
    open_, fsync = os.open, os.fsync

    def opening(path, *arguments, **others):
        if open_error is not None and Path(path).is_dir():
            raise open_error
        return open_(path, *arguments, **others)

    def syncing(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if fsync_error is not None and Path(name).is_dir():
            raise fsync_error
        names.append(Path(name).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", syncing)
    to_disk(folder)
    return sorted(names)


def test_files_and_their_folder_reach_the_disk(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert synced(tmp_path, monkeypatch) == sorted(["a", "b", tmp_path.name])


@pytest.mark.parametrize(
    "errors",
    [
        {"open_error": PermissionError(errno.EACCES, "Permission denied")},  # Windows
        {"fsync_error": OSError(errno.EINVAL, "Invalid argument")},  # file systems of networks
    ],
)
def test_a_folder_that_cannot_be_synced_costs_nothing(tmp_path, monkeypatch, errors):
    (tmp_path / "a").write_text("a")
    assert synced(tmp_path, monkeypatch, **errors) == ["a"]


def test_a_folder_that_fails_otherwise_is_a_failure(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="Input/output error"):
        synced(tmp_path, monkeypatch, fsync_error=OSError(errno.EIO, "Input/output error"))


def unspoken(source):
    """Lines that open a text file without an encoding, which is another one on every system."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        plain = isinstance(call.func, ast.Name)
        strings = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        modes = [s for s in strings if s.strip("rwxabt+") == ""]
        opens = (name == "open" and (plain or bool(modes))) or name in ("NamedTemporaryFile", "TemporaryFile")
        text = not any("b" in mode for mode in modes) and (name == "open" or bool(modes))
        if name in ("read_text", "write_text") or (opens and text):
            spoken = any(keyword.arg == "encoding" for keyword in call.keywords) or "utf-8" in strings
            found += [] if spoken else [call.lineno]
    return found


def test_every_text_file_is_opened_with_its_encoding():
    assert unspoken("a.open('a')\nopen('x')\na.open('rb')\na.read_text()\nopen(x, 'w', encoding='utf-8')") == [1, 2, 4]
    files = [
        path for package in ("crossmae", "crossmae_kernels", "benchmarks") for path in (ROOT / package).rglob("*.py")
    ]
    assert len(files) > 100
    assert {str(path): lines for path in files if (lines := unspoken(path.read_text("utf-8")))} == {}
