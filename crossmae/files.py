"""Write files whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    Raises OSError, like ``require_folder_of`` before anything is written; it names ``path``, not the temporary one.
    """
    path = Path(path)
    require_folder_of(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # left by a killed process that had our process id; it may be a link
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

    Raises OSError, like ``require_new_folder`` before anything is written.
    """
    path = Path(path)
    require_new_folder(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)  # left by a killed process that had our process id
    try:
        beside.mkdir()
        yield beside
        if path.is_dir():
            path.rmdir()  # empty; Windows cannot rename to an existing folder
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def to_disk(folder: Path) -> None:
    """Flush a folder's files and names to disk, to survive a power failure."""
    for path in folder.iterdir():
        with path.open("r+b") as file:  # Windows flushes only files open for writing
            os.fsync(file.fileno())
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders, and journals names
        return
    try:
        os.fsync(descriptor)
    except OSError as error:  # of file systems that cannot sync folders
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def require_folder_of(path: str | os.PathLike[str]) -> None:
    """Raise FileNotFoundError, IsADirectoryError or PermissionError if no file can be written there."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    _require_permission(path.parent)


def require_new_folder(path: str | os.PathLike[str]) -> None:
    """Raise OSError if no new folder can be made, or it exists and is not empty."""
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"cannot write into {path}: it is a file")
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"cannot write into {path}: it is not empty; choose a new or an empty folder")
    _require_permission(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder to write into, and its missing parents.

    Raises NotADirectoryError if one of them is a file, PermissionError if it is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"cannot write into {path}: it is a file, or is below one") from None
    _require_permission(path)


def _require_permission(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write into the folder {folder}")
