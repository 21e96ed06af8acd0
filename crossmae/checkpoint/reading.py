"""Read files of tensors without running code from them: safetensors, ``torch.save``, and both in shards."""

import argparse
import json
import os
import re
import warnings
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from crossmae.checkpoint.messages import first_few
from crossmae.checkpoint.recognition import first_class, looks_like

# Files to look for in a folder, in this order.
_INDEX = ".index.json"
_MODEL, _OTHERS = "model.safetensors", (f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")
# A name such as owner/model, without a file's suffix.
_HUB = r"[\w-][\w.-]*/(?!.*\.(?:pth|pt|bin|ckpt|safetensors|json|tar|pkl)$)[\w.-]+"


class _Nothing:
    """Stands in for a value that no weight depends on, and discards it."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# Allowed beyond tensors and plain values. A path is read as a pure one, which works for any system on any system
# (Python 3.13 pickles paths under another module's name). NumPy values are scores, losses and generators' states.
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


def find(path: str | os.PathLike[str]) -> Path:
    """The file to read: ``path`` itself, or the one found in a folder.

    Raises FileNotFoundError, listing what is there instead; for a URL, it says that nothing is downloaded.
    """
    name, file = os.fspath(path), Path(path)
    if name and file.is_dir():
        found = [file / held for held in (_MODEL, *_OTHERS) if (file / held).is_file()]
        if not found:
            if (file / ".metadata").is_file():
                raise FileNotFoundError(
                    f"{name} is a distributed checkpoint, which torch.distributed.checkpoint.format_utils."
                    "dcp_to_torch_save makes one file"
                )
            held = first_few(sorted(f"{entry.name}{'/' * entry.is_dir()}" for entry in file.iterdir())) or "nothing"
            others = ", no ".join(_OTHERS)
            raise FileNotFoundError(
                f"there is no checkpoint file {others} in the folder, which holds {held}, and no {file / _MODEL}"
            )
        return found[0]
    if file.is_file():
        return file
    if re.match(r"[a-z][a-z0-9+.-]+:/", name):
        raise FileNotFoundError(f"{name} is a URL, and nothing is downloaded: fetch the file and pass its path")
    hub = "; if it is a model on a hub: nothing is downloaded, so fetch its folder and pass that"
    raise FileNotFoundError(
        f"there is no checkpoint file {name or repr(name)}{hub if re.fullmatch(_HUB, name) else ''}"
    )


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """The file's content, with tensors on the CPU, and the metadata that safetensors files may have.

    Raises ValueError if the file is damaged or holds objects that are not allowed, FileNotFoundError if a shard is
    missing.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path), {}
    with path.open("rb") as file:
        head = file.read(512)
    if what := looks_like(head):
        raise ValueError(f"{path} is not a checkpoint but {what}")
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
        # An open file, since torch.load decides by the suffix of a path.
        with path.open("rb") as file, torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that fail anyway, and sparse tensors
            content = torch.load(file, map_location="cpu", weights_only=True)
        _require_checksums(path)
        return content
    except Exception as error:  # a damaged pickle may raise anything
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if name := asked[1] if asked else first_class(path):
            why = f"holds objects of {name}, which are never unpickled; save a model's state_dict() instead"
        elif "TorchScript" in str(error):
            why = "is a TorchScript archive, which is never run; save a model's state_dict() instead"
        else:
            first = str(error).strip().partition("\n")[0]
            # PyTorch's advice to unpickle anything is withheld, and so is an opcode's number.
            silent = "weights" in first.lower() or first.isdigit()
            reason = "" if silent else f": {first or type(error).__name__}"
            why = (
                f"is not a checkpoint, or is damaged: neither a safetensors file nor one written by torch.save{reason}"
            )
        raise ValueError(f"{path} {why}") from error


def _require_checksums(path: Path) -> None:
    """Raise ValueError if a zip archive's content is not what was written, which PyTorch does not check.

    0.04 s per 200 MB, after 0.09 s of reading. PyTorch can be told to write zeros for checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip() if any(part.CRC for part in archive.infolist()) else None
    if damaged:
        raise ValueError(f"the checksum of {damaged} does not fit")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files listed in an index."""
    by_shard: dict[str, set[str]] = {}
    try:
        for name, shard in json.loads(index.read_text("utf-8"))["weight_map"].items():
            if Path(shard).name != shard or shard.endswith(_INDEX):
                raise ValueError(f"{shard!r} is not the name of a file next to it")
            by_shard.setdefault(shard, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards: {error!r}") from error
    missing = sorted(shard for shard in by_shard if not (index.parent / shard).is_file())
    if missing:
        raise FileNotFoundError(f"{index} lists {first_few(missing, len(by_shard), 'shards')}, which are missing")
    tensors: dict[str, Tensor] = {}
    for shard, expected in sorted(by_shard.items()):
        held, _ = read(index.parent / shard)
        if not isinstance(held, dict):
            raise ValueError(f"{index.parent / shard} must hold tensors by name, got {type(held).__name__}")
        for problem, names in (("lacks", expected - held.keys()), ("has extra", held.keys() - expected)):
            if names:
                raise ValueError(f"{index.parent / shard} {problem}, unlike {index.name}: {first_few(sorted(names))}")
        tensors |= held
    return tensors
