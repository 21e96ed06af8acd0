"""Reading files of tensors without running code of theirs: safetensors, ``torch.save``, and both in shards."""

import argparse
import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from crossmae.checkpoint.messages import first_few

# What a folder is looked through for, in this order.
_INDEX = ".index.json"
_MODEL, _OTHERS = "model.safetensors", (f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")


class _Nothing:
    """In the place of a value that no weight depends on; keeps nothing of it."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# Beyond tensors and plain values. A path is read as a pure one, which exists for every system on every system
# (Python 3.13 pickles paths under another module's name). NumPy's values are scores, losses and states of generators.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (str, "torch.torch_version.TorchVersion"),
    (_Nothing, "numpy.dtype"),
    (_Nothing, "numpy.ndarray"),
    *(
        (_Nothing, f"numpy.{core}.multiarray.{made}")
        for core in ("core", "_core")
        for made in ("scalar", "_reconstruct")
    ),
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for pure, name in (
            (PurePosixPath, "PosixPath"),
            (PurePosixPath, "PurePosixPath"),
            (PureWindowsPath, "WindowsPath"),
            (PureWindowsPath, "PureWindowsPath"),
        )
    ),
]


def find(path: Path) -> Path:
    """The file to read: ``path`` itself, or the one that a folder holds."""
    if path.is_dir():
        found = [path / name for name in (_MODEL, *_OTHERS) if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"there is no checkpoint file {', no '.join(_OTHERS)} and no {path / _MODEL}")
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    return path


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """What the file holds, tensors on the CPU, and the metadata that safetensors files may have.

    Raises ValueError for a file that is damaged or holds more than it may, FileNotFoundError for a missing shard.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path), {}
    with path.open("rb") as file:
        head = file.read(9)
    return _read_safetensors(path) if head[8:9] == b"{" else (_read_pickled(path), {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file: {error}") from error


def _read_pickled(path: Path) -> Any:
    try:
        # An open file, since torch.load goes by the names of paths.
        with path.open("rb") as file, torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = re.search(r"WeightsUnpickler error: (.+)", str(error)) or re.match(r"(.+)", str(error).strip())
        reason = why[1] if why else type(error).__name__
        if asked:
            reason = f"it asks for {asked[1]}; save a model's state_dict() instead"
        raise ValueError(
            f"{path} is no checkpoint, is damaged, or holds more than tensors and plain values: {reason}"
        ) from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    by_shard: dict[str, set[str]] = {}
    try:
        for name, shard in json.loads(index.read_text())["weight_map"].items():
            if Path(shard).name != shard or shard.endswith(_INDEX):
                raise ValueError(f"{shard!r} is no name of a file beside it")
            by_shard.setdefault(shard, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: {error!r}") from error
    missing = sorted(shard for shard in by_shard if not (index.parent / shard).is_file())
    if missing:
        raise FileNotFoundError(f"{index} names {first_few(missing, len(by_shard), 'shards')}, which are missing")
    tensors: dict[str, Tensor] = {}
    for shard, expected in sorted(by_shard.items()):
        held, _ = read(index.parent / shard)
        if not isinstance(held, dict):
            raise ValueError(f"{index.parent / shard} must hold tensors by name, got {type(held).__name__}")
        for problem, names in (("lacks", expected - held.keys()), ("holds as well", held.keys() - expected)):
            if names:
                raise ValueError(f"{index.parent / shard} {problem}, unlike {index.name}: {first_few(sorted(names))}")
        tensors |= held
    return tensors
