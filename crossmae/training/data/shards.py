"""WebDataset shards: tar files in which members that share a name up to its first dot form a sample.

Members are located once and then read by offset, so shards are shuffled globally and resumed exactly, like folders.
This needs a file system with random access, local or of a cluster; object stores that only stream are not supported.
"""

import glob
import json
import os
import tarfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from crossmae.training.data.decoding import read
from crossmae.training.data.folders import EXTENSIONS
from crossmae.training.data.source import PackedNames, Source
from crossmae.training.data.values import Picture, UnreadableImage, printable

LABELS = (".cls", ".json")
SPAN = 10_000  # labels that a thread reads at a time


@dataclass(frozen=True)
class _Member:
    """Offset and size of a tar member's content, in bytes."""

    name: str
    offset: int
    size: int


_Sample = tuple[_Member, _Member | None]  # image, label


class Shards(Source):
    """Images in tar files; a sample's label is its .cls (an integer) or .json member (key "label" or "cls")."""

    def __init__(self, paths: Sequence[Path], samples: Sequence[Sequence[_Sample]]):
        self.paths = PackedNames(map(str, paths))
        flat = [sample for shard in samples for sample in shard]
        self.names = PackedNames(image.name for image, _ in flat)
        self.label_names = PackedNames(label.name if label else "" for _, label in flat)
        self._shard = np.repeat(np.arange(len(paths)), [len(shard) for shard in samples])
        self._image = np.array([(image.offset, image.size) for image, _ in flat], np.int64)
        self._label = np.array([(label.offset, label.size) if label else (0, 0) for _, label in flat], np.int64)
        first = next((i for i, name in enumerate(self.label_names) if name), None)
        self.labelled = first is not None and self.label(first) >= 0
        if first is not None and not self.labelled:
            self.unlabelled = f"{self.label_shown(first)}, where a label is an integer from 0 on"

    def __len__(self) -> int:
        return len(self.names)

    @override
    def read(
        self, index: int, channels: int, at_least: tuple[int, int] | None = None, nodata: float | None = None
    ) -> Picture:
        name = self._shown(index, self.names[index])
        return read(self._content(index, self._image, name), name, channels, at_least, nodata)

    @override
    def label(self, index: int) -> int:
        name = self.label_names[index]
        if not name:
            return -1
        content = self._content(index, self._label, name)
        try:
            fields = json.loads(content) if name.lower().endswith(".json") else {"label": content}
            return int(fields.get("label", fields.get("cls", -1)))
        except (ValueError, TypeError, AttributeError):  # a caption, for example
            return -1

    @override
    def all_labels(self) -> "npt.NDArray[np.int64]":
        from tqdm import tqdm

        spans = [range(first, min(first + SPAN, len(self))) for first in range(0, len(self), SPAN)]
        with ThreadPoolExecutor(8) as pool:  # remote file systems serve several reads at a time
            read = pool.map(lambda span: list(map(self.label, span)), spans)
            parts = list(tqdm(read, desc=f"labels, {SPAN:,} at a time", total=len(spans), disable=len(spans) < 2))
        return np.array([label for part in parts for label in part], np.int64)

    @override
    def label_shown(self, index: int) -> str:
        name = self.label_names[index]
        if not name:
            return f"{self._shown(index, self.names[index])}, which has none beside it"
        content = self._content(index, self._label, name)[:40].decode("utf-8", "replace")
        return f"{self._shown(index, name)} holds {content!r}"

    def _content(self, index: int, table: "npt.NDArray[np.int64]", name: str) -> bytes:
        offset, size = map(int, table[index])
        try:
            with open(self.paths[int(self._shard[index])], "rb") as shard:
                shard.seek(offset)
                return shard.read(size)
        except OSError as error:
            raise UnreadableImage(f"{name} cannot be read: {error}") from error

    def _shown(self, index: int, member: str) -> str:
        return printable(f"{self.paths[int(self._shard[index])]}/{member}")


def expanded(pattern: str) -> list[Path]:
    """The shards matching a pattern with braces and wildcards, in order; all must exist.

    Raises:
        FileNotFoundError: if one is missing, or none matches.
    """
    from braceexpand import braceexpand

    paths: list[Path] = []
    for name in braceexpand(pattern, escape=os.sep != "\\"):  # backslashes belong to Windows paths
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        paths += map(Path, matches)
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        what = f"{missing[0]}, one of {len(missing)} missing shards of" if missing else "file that matches"
        raise FileNotFoundError(f"there is no {what} {pattern!r}")
    return paths


def shards(paths: Sequence[Path]) -> Shards:
    """Find all samples in tar files.

    Raises:
        ValueError: if a shard is damaged or compressed, a label is not an integer, or there is no image at all.
    """
    with ThreadPoolExecutor(8) as pool:  # remote file systems serve several reads at a time
        samples = list(pool.map(_samples, paths))
    if not any(samples):
        raise ValueError(f"there is no image in {len(paths)} shards from {paths[0]} on")
    return Shards(paths, samples)


def _samples(path: Path) -> list[_Sample]:
    found: dict[str, dict[str, _Member]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                if not member.isfile() or file.startswith("."):
                    continue
                stem, _, extension = file.partition(".")
                place = _Member(member.name, member.offset_data, member.size)
                found.setdefault(f"{folder}/{stem}", {})[f".{extension.lower()}"] = place
    except tarfile.TarError as error:
        raise ValueError(f"shard {path} is damaged, or compressed and so not readable at random: {error}") from error
    samples: list[_Sample] = []
    for parts in found.values():
        image = _first(parts, EXTENSIONS)
        if image is not None:
            samples.append((image, _first(parts, LABELS)))
    return samples


def _first(parts: dict[str, _Member], extensions: Collection[str]) -> _Member | None:
    """The first part with one of these extensions, in full or, as for ``seg.png``, by its last component."""
    whole = [part for extension, part in parts.items() if extension in extensions]
    ends = [part for extension, part in parts.items() if os.path.splitext(extension[1:])[1] in extensions]
    return next(iter(whole + ends), None)
