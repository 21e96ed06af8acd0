"""Folders of image files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from crossmae.training.data.decoding import read
from crossmae.training.data.source import PackedNames, Source
from crossmae.training.data.values import Picture, printable

EXTENSIONS = frozenset(
    [
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
        *(".npy", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
    ]
)


class ImageFiles(Source):
    """Files below a folder, by relative path; ``labels (N,)`` index ``classes``."""

    def __init__(
        self, folder: Path, names: PackedNames, labels: npt.NDArray[Any] | None, classes: tuple[str, ...] | None
    ):
        self.folder, self.names, self.labels, self.classes = folder, names, labels, classes
        self.labelled = labels is not None

    def __len__(self) -> int:
        return len(self.names)

    @override
    def read(
        self, index: int, channels: int, at_least: tuple[int, int] | None = None, nodata: float | None = None
    ) -> Picture:
        path = self.folder / self.names[index]
        return read(path, printable(path), channels, at_least, nodata)

    @override
    def label(self, index: int) -> int:
        return -1 if self.labels is None else int(self.labels[index])


def image_files(folder: Path, classes: Sequence[str] | None = None) -> ImageFiles:
    """All images below a folder, in the order of their paths; other and hidden files are skipped.

    Args:
        folder: to search, following links.
        classes: of the data set whose labels to use; by default the names of the subfolders.

    Raises:
        PermissionError: if a folder cannot be read.
        ValueError: if there is no image, or a subfolder is not one of ``classes``.
    """
    found, others = _scan(folder)
    if not found:
        passed = f" but {others} other files" if others else ""
        raise ValueError(f"there is no image in {folder}{passed}; supported extensions: {' '.join(sorted(EXTENSIONS))}")
    names = PackedNames(found)
    subfolders = [name.partition("/")[0] for name in found] if all("/" in name for name in found) else []
    own = sorted(set(subfolders))
    empty = [name for name in _subfolders(folder) if own and name not in own]
    if len(own) < (2 if classes is None else 1):
        files = ImageFiles(folder, names, None, None)
        if own:
            files.unlabelled = f"{folder} has images of one class alone, {own[0]}"
            files.unlabelled += f"; there is none in {', '.join(empty)}" if empty else ""
        return files
    if classes is not None and not set(own) <= set(classes):
        unknown = sorted(set(own) - set(classes))
        raise ValueError(f"{folder} has classes that the training images lack: {', '.join(unknown[:5])}")
    number = {name: i for i, name in enumerate(classes or own)}
    files = ImageFiles(folder, names, np.array([number[s] for s in subfolders], np.int32), tuple(classes or own))
    files.empty_classes = tuple(empty)
    return files


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _scan(folder: Path) -> tuple[list[str], int]:
    """Sorted paths of images relative to ``folder``, with slashes, and the number of other files."""
    found, others, seen = [], 0, set()
    for base, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        status = os.stat(base)
        if (status.st_dev, status.st_ino) in seen:  # links may form cycles
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(base).relative_to(folder)
        visible = [name for name in files if not name.startswith(".")]
        images = [name for name in visible if os.path.splitext(name)[1].lower() in EXTENSIONS]
        found += [(inside / name).as_posix() for name in images]
        others += len(visible) - len(images)
    return sorted(found), others


def _raise(error: OSError) -> None:
    raise error
