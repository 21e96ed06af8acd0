"""Files that are written whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    Raises FileNotFoundError if the folder does not exist.
    """
    path = Path(path)
    require_folder_of(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of a process that was killed, whose number is ours now; it may be a link
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


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
    """Raise FileNotFoundError if the folder that a file is to be written to does not exist."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
