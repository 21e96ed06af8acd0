"""Files that are written whole or not at all."""

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
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def require_folder_of(path: str | os.PathLike[str]) -> None:
    """Raise FileNotFoundError if the folder that a file is to be written to does not exist."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
