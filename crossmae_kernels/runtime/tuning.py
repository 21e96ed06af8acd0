"""Opt-in tuning: time the candidate configurations of a kernel once per machine and remember the fastest.

Off unless ``CROSSMAE_KERNELS_TUNE=1``; then every kernel uses the configuration of its analytic rule and the disk is
not touched. With ``CROSSMAE_KERNELS_TUNE=recall`` what was tuned before is used and nothing is timed.

Results lie in ``$CROSSMAE_KERNELS_CACHE`` (``~/.cache/crossmae_kernels`` unless set), one small JSON file per kernel,
device, versions and key; a key holds widths and dtype, and of the batch its order of magnitude: whether launches or
bytes decide is another question for 2 images than for 1,024, and a last short batch shall not answer for both.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from crossmae_kernels.extras import version

Configuration = TypeVar("Configuration")
Result = TypeVar("Result")

_known: dict[tuple[object, ...], Any] = {}


def enabled() -> bool:
    """Whether kernels run in tuned configurations in this process, where there are any."""
    return os.environ.get("CROSSMAE_KERNELS_TUNE") in ("1", "recall")


def run_tuned(
    kernel: str,
    key: tuple[object, ...],
    rows: int,
    rule: Configuration,
    candidates: Callable[[], Sequence[Configuration]],
    run: Callable[[Configuration], Result],
    device: torch.device,
) -> Result:
    """Run in the rule's configuration, or with tuning enabled in the fastest candidate's.

    Args:
        kernel: its name.
        key: what the choice may depend on.
        rows: of this call, or images, or whatever grows with the batch; the choice depends on its number of bits.
        rule: the analytic choice, a frozen dataclass or a name.
        candidates: further configurations to time.
        run: launches the kernel once; writes nothing that a later launch does not write again.
        device: where it runs.
    """
    if not enabled() or device.type != "cuda":
        return run(rule)
    full_key = (kernel, torch.cuda.get_device_name(device), versions(), *key, f"{rows.bit_length()} bits of rows")
    file = cache_directory() / f"{kernel}-{hashlib.sha256(repr(full_key).encode()).hexdigest()[:16]}.json"
    if full_key not in _known:
        _known[full_key] = _chosen(file, full_key, [rule, *candidates()], run)
    best: Configuration = _known[full_key]
    if best == rule:
        return run(rule)
    try:
        return run(best)
    except Exception as error:
        if not refused(error):
            raise
        _known[full_key] = rule
        with contextlib.suppress(OSError):  # a cache that may only be read
            file.unlink()
        _warn(f"{kernel} no longer runs as {file.name} has it, which is forgotten: {error}")
    return run(rule)


def _chosen(
    file: Path, key: tuple[object, ...], candidates: Sequence[Configuration], run: Callable[[Configuration], object]
) -> Configuration:
    """The remembered one of the candidates, or the fastest, or the first, which is the rule's."""
    best = recall(file, key, candidates)
    if best is None and os.environ["CROSSMAE_KERNELS_TUNE"] == "1":
        best = fastest(candidates, run, _milliseconds)
        if best is not None:
            remember(file, key, best)
    return candidates[0] if best is None else best


def fastest(
    candidates: Sequence[Configuration],
    run: Callable[[Configuration], object],
    milliseconds: Callable[[Callable[[], object]], float],
) -> Configuration | None:
    """The candidate that runs in the least time; those that are refused are passed over, and None if all are."""
    times: dict[Configuration, float] = {}
    for candidate in dict.fromkeys(candidates):
        try:
            times[candidate] = milliseconds(lambda candidate=candidate: run(candidate))  # type: ignore[misc]
        except Exception as error:
            if not refused(error):
                raise
    return min(times, key=times.__getitem__, default=None)


def refused(error: Exception) -> bool:
    """Whether Triton, its compiler or the assembler refused a kernel, for its resources or otherwise: nothing ran."""
    from triton import TritonError

    if isinstance(error, TritonError):
        return True
    # What LLVM refuses, Triton (3.6 to 3.8) passes on without a class. Errors of the device have classes, or others do.
    return type(error) is RuntimeError and any(failure in str(error) for failure in LLVM_FAILURES)


LLVM_FAILURES = "PassManager::run failed", "failed to translate module to LLVM IR"


@functools.cache
def versions() -> str:
    """Of all that decides how fast a configuration is, or whether it runs at all."""
    packages = {name: version(name) for name in ("torch", "triton", "crossmae-kernels")}
    return ", ".join(f"{name} {number}" for name, number in {**packages, "CUDA": torch.version.cuda}.items())


def cache_directory() -> Path:
    """Where results lie."""
    chosen = os.environ.get("CROSSMAE_KERNELS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "crossmae_kernels"


def recall(file: Path, key: tuple[object, ...], candidates: Sequence[Configuration]) -> Configuration | None:
    """The remembered one of the candidates; None if there is no record, or, with a warning, none of this key."""
    try:
        record = json.loads(file.read_text("utf-8"))
        if record["key"] != repr(key):
            raise ValueError(f"it is of {record['key']}")
        for candidate in candidates:
            if _plain(candidate) == record["configuration"]:
                return candidate
        raise ValueError(f"{record['configuration']} is none of the candidates")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _warn(f"the record {file} is of no use: {type(error).__name__}: {error}")
        return None


def remember(file: Path, key: tuple[object, ...], best: object) -> None:
    """Write a record in one step, so that another process sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"key": repr(key), "configuration": _plain(best)}
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, suffix=".tmp", delete=False) as temporary:
        json.dump(record, temporary)
    os.replace(temporary.name, file)


def _plain(configuration: object) -> object:
    """As JSON has it."""
    return asdict(configuration) if is_dataclass(configuration) else configuration  # type: ignore[arg-type]


def _warn(what: str) -> None:
    """In one line, whatever others put into their messages."""
    warnings.warn(f"crossmae_kernels tuning: {' '.join(what.split())}", RuntimeWarning, stacklevel=2)


def _milliseconds(run: Callable[[], object]) -> float:
    """Median time of a launch by CUDA events, after the first ones that compile and warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]
