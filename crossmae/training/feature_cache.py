"""Frozen features on disk, looked up by what they were computed from."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crossmae.checkpoint.reading import find
from crossmae.files import make_folder, replacing
from crossmae.training.data.bundled import ImagesInMemory
from crossmae.training.data.folders import ImageFiles
from crossmae.training.data.shards import Shards
from crossmae.training.data.source import Source
from crossmae.training.probe import LabelledFeatures
from crossmae_kernels.command import reason

_CHUNK = 1 << 24


class FeatureCache:
    """Features of a set of images under a checkpoint, one file per pair.

    A file is looked up by the checkpoint's content, the image files' names, sizes, times and labels, and all settings,
    so any change causes a miss. A damaged file is refused.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def features(
        self, checkpoint: str, source: Source, settings: dict[str, Any], make: Callable[[], LabelledFeatures]
    ) -> LabelledFeatures:
        """Read the features from disk, or else compute them with ``make`` and write them.

        Raises:
            ValueError: if the file is damaged, naming it.
            OSError: if it cannot be read or written.
        """
        from safetensors.torch import load_file, save_file

        made_of = json.dumps([_of_checkpoint(checkpoint), _of_images(source), settings], sort_keys=True)
        path = self._folder / f"{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                found = load_file(path)
                content = LabelledFeatures(found["values"], found["labels"])
                if _digest(content) == bytes(found["digest"].tolist()):
                    return content
                why = "its content differs from what was written"
            except Exception as error:  # safetensors raises its own errors
                why = reason(error)
            raise ValueError(f"{path}, a cache of the features of {checkpoint}, is damaged: {why}; remove it")
        made = make()
        make_folder(self._folder)
        digest = torch.tensor(list(_digest(made)), dtype=torch.uint8)
        with replacing(path) as beside:
            save_file({"values": made.values.contiguous(), "labels": made.labels, "digest": digest}, beside)
        return made


def _digest(features: LabelledFeatures) -> bytes:
    found = hashlib.sha256(features.labels.numpy().tobytes())
    for part in features.values.split(4096):
        found.update(part.numpy().tobytes())
    return found.digest()


def _of_checkpoint(checkpoint: str) -> str:
    """A digest of a checkpoint's weights and the files beside them."""
    path = find(checkpoint)
    files = [path, *path.parent.glob("config.json")]
    if path.suffix == ".json":  # an index of shards
        files += sorted(path.parent.glob("*.safetensors")) + sorted(path.parent.glob("*.bin"))
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while part := content.read(_CHUNK):
                found.update(part)
    return found.hexdigest()


def _of_images(source: Source) -> str:
    """A digest that identifies the images without reading all of them."""
    found = hashlib.sha256(source.all_labels().tobytes())
    paths: list[Path] = []
    if isinstance(source, ImagesInMemory):
        found.update(source.images.numpy().tobytes())
    elif isinstance(source, Shards):
        paths = list(map(Path, source.paths))
    elif isinstance(source, ImageFiles):
        paths = [source.folder / name for name in source.names]
    for path in paths:
        status = os.stat(path)
        found.update(f"{os.fsencode(path)!r} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()
