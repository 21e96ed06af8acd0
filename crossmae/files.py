"""Files that are written whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    Raises OSError, as ``require_folder_of`` does before anything is written; it names ``path``, not the one beside.
    """
    path = Path(path)
    require_folder_of(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of a process that was killed, whose number is ours now; it may be a link
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if str(beside) in map(str, (error.filename, error.filename2)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder beside ``path`` to write into; renamed to ``path`` on success, removed on failure.

    Raises OSError, as ``require_new_folder`` does before anything is written.
    """
    path = Path(path)
    require_new_folder(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed, whose number is ours now
    try:
        beside.mkdir()
        yield beside
        if path.is_dir():
            path.rmdir()  # empty; Windows renames to no folder that is there
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def to_disk(folder: Path) -> None:
    """Let the files of a folder, and their names in it, survive a power failure."""
    for path in folder.iterdir():
        with path.open("r+b") as file:  # Windows writes out what is open for writing
            os.fsync(file.fileno())
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder, and keeps names in a journal
        return
    try:
        os.fsync(descriptor)
    except OSError as error:  # of file systems that know files only
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def require_folder_of(path: str | os.PathLike[str]) -> None:
    """Raise FileNotFoundError, IsADirectoryError or PermissionError where no file can be written."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    _require_permission(path.parent)


def require_picture(path: str | os.PathLike[str]) -> None:
    """Raise, as ``require_folder_of`` does, and ValueError where the name is of another kind of file than PNG."""
    require_folder_of(path)
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"cannot write {path}: pictures are PNG files, so a name must end in .png")


def require_new_folder(path: str | os.PathLike[str]) -> None:
    """Raise OSError where no new folder can be made, or one is there that is not empty."""
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"cannot write into {path}: it is a file")
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"cannot write into {path}: it holds something already; give a new or an empty folder")
    _require_permission(path.parent)


def require_place(path: Path) -> None:
    """Raise NotADirectoryError or PermissionError where ``make_folder`` will; nothing is made."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write into {path}: it is a file, or lies below one")
    _require_permission(there)


def make_folder(path: Path) -> None:
    """Make a folder to write into, and those that it lies in, where they are missing.

    Raises NotADirectoryError if one of them is a file, PermissionError if nothing may be written there.
    """
    require_place(path)
    path.mkdir(parents=True, exist_ok=True)


def _require_permission(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"there is no permission to write into the folder {folder}")
