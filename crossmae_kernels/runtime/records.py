"""Measurements on disk: one small JSON file per kernel, device, versions and key.

They are in ``$CROSSMAE_KERNELS_CACHE`` (by default ``~/.cache/crossmae_kernels``). Records missing there may come with
the package, in ``crossmae_kernels/tuned``.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TypeVar

import torch

from crossmae_kernels.extras import version

Configuration = TypeVar("Configuration")

SHIPPED = Path(__file__).parents[1] / "tuned"


@functools.cache
def versions() -> str:
    """Versions of everything that determines how fast a configuration is, or whether it runs at all."""
    packages = {name: version(name) for name in ("torch", "triton", "crossmae-kernels")}
    return ", ".join(f"{name} {number}" for name, number in {**packages, "CUDA": torch.version.cuda}.items())


def cache_directory() -> Path:
    """The folder of the user's records."""
    chosen = os.environ.get("CROSSMAE_KERNELS_CACHE")
    return Path(chosen) if chosen else Path(os.path.expanduser("~")) / ".cache" / "crossmae_kernels"


def present(pattern: str) -> bool:
    """Whether there is any record with a matching name."""
    return any(next(folder.glob(pattern), None) for folder in (cache_directory(), SHIPPED))


def name_of(kernel: str, key: tuple[object, ...]) -> str:
    """The file name of a record."""
    return f"{kernel}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json"


def recall(
    name: str, key: tuple[object, ...], candidates: Sequence[Configuration], thorough: bool
) -> dict[Configuration, float]:
    """Milliseconds of candidates, fastest first, from the user's record or else the package's.

    Empty if there is no record, or no ``thorough`` one if requested; also, with a warning, if it is for another key or
    lists no candidate.
    """
    for file in (cache_directory() / name, SHIPPED / name):
        try:
            record = json.loads(file.read_text("utf-8"))
            if record["key"] != repr(key):
                raise ValueError(f"it is for {record['key']}")
            if thorough and not record["thorough"]:
                continue
            known = [(candidate, _plain(candidate)) for candidate in candidates]
            times = {c: float(time) for was, time in record["milliseconds"] for c, plain in known if plain == was}
            if not times:
                raise ValueError(f"none of {record['milliseconds']} is a candidate")
            return times
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(f"the record {file} is unusable: {type(error).__name__}: {error}")
    return {}


def remember(name: str, key: tuple[object, ...], milliseconds: Mapping[Configuration, float], thorough: bool) -> None:
    """Write a record atomically, so that other processes see all of it or nothing; warn if it cannot be written.

    Args:
        name: of the file.
        key: what the record is for.
        milliseconds: of each candidate that ran, fastest first.
        thorough: whether each ran with tuned tiles.
    """
    times = [[_plain(candidate), time] for candidate, time in milliseconds.items()]
    record = {"key": repr(key), "thorough": thorough, "milliseconds": times}
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, suffix=".tmp", delete=False) as temporary:
            json.dump(record, temporary)
        os.replace(temporary.name, folder / name)
    except OSError as error:
        warn(f"measurements cannot be saved for later processes: {error}")


def forget(name: str) -> None:
    """Remove the user's record, unless the folder is read-only."""
    with contextlib.suppress(OSError):
        (cache_directory() / name).unlink()


def _plain(configuration: object) -> object:
    """Convert to plain JSON values."""
    return asdict(configuration) if is_dataclass(configuration) else configuration  # type: ignore[arg-type]


def warn(what: str) -> None:
    """Warn in one line, even if the message has several."""
    warnings.warn(f"crossmae_kernels tuning: {' '.join(what.split())}", RuntimeWarning, stacklevel=2)
