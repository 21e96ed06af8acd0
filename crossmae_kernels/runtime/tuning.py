"""Opt-in tuning: time the candidate configurations of a kernel once per machine and remember the fastest.

Off unless ``CROSSMAE_KERNELS_TUNE=1``; then every kernel uses the configuration of its analytic rule and the disk is
not touched. With ``CROSSMAE_KERNELS_TUNE=recall`` what was tuned before is used and nothing is timed.

Results lie in ``$CROSSMAE_KERNELS_CACHE`` (``~/.cache/crossmae_kernels`` unless set), one small JSON file per kernel,
device and key; a key holds widths and dtype and never the batch.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

Configuration = TypeVar("Configuration")

_known: dict[tuple[object, ...], Any] = {}


def enabled() -> bool:
    """Whether kernels run in tuned configurations in this process, where there are any."""
    return os.environ.get("CROSSMAE_KERNELS_TUNE") in ("1", "recall")


def tuned(
    kernel: str,
    key: tuple[object, ...],
    rule: Configuration,
    candidates: Callable[[], Sequence[Configuration]],
    run: Callable[[Configuration], object],
    device: torch.device,
) -> Configuration:
    """The configuration to launch: the rule's own, or with tuning enabled the fastest candidate.

    Args:
        kernel: its name.
        key: what the choice may depend on.
        rule: the analytic choice, a frozen dataclass or a name.
        candidates: further configurations to time.
        run: launches the kernel once; writes nothing that a later launch does not write again.
        device: where it runs.
    """
    if not enabled() or device.type != "cuda":
        return rule
    full_key = (kernel, torch.cuda.get_device_name(device), torch.version.cuda, *key)
    if full_key not in _known:
        file = cache_directory() / f"{kernel}-{hashlib.sha256(repr(full_key).encode()).hexdigest()[:16]}.json"
        best = recall(file, full_key, rule)
        if best is None and os.environ["CROSSMAE_KERNELS_TUNE"] == "recall":
            best = rule
        elif best is None:
            best = fastest([rule, *candidates()], run, _milliseconds)
            remember(file, full_key, best)
        _known[full_key] = best
    return _known[full_key]


def fastest(
    candidates: Sequence[Configuration],
    run: Callable[[Configuration], object],
    milliseconds: Callable[[Callable[[], object]], float],
) -> Configuration:
    """The candidate that runs in the least time; one that the device has no room for is passed over."""
    times: dict[Configuration, float] = {}
    for candidate in dict.fromkeys(candidates):
        try:
            times[candidate] = milliseconds(lambda candidate=candidate: run(candidate))  # type: ignore[misc]
        except Exception as error:
            if type(error).__name__ != "OutOfResources":
                raise
    if not times:
        raise RuntimeError("no candidate configuration fits this device")
    return min(times, key=times.__getitem__)


def cache_directory() -> Path:
    """Where results lie."""
    chosen = os.environ.get("CROSSMAE_KERNELS_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "crossmae_kernels"


def recall(file: Path, key: tuple[object, ...], like: Configuration) -> Configuration | None:
    """The remembered configuration, of the class of ``like``; None if there is none or it is of another key."""
    try:
        record = json.loads(file.read_text("utf-8"))
        if record["key"] != repr(key):
            return None
        best: Any = record["configuration"]
        return type(like)(**best) if isinstance(best, dict) else best
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(file: Path, key: tuple[object, ...], best: object) -> None:
    """Write a record in one step, so that another process sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"key": repr(key), "configuration": asdict(best) if is_dataclass(best) else best}  # type: ignore[arg-type]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, suffix=".tmp", delete=False) as temporary:
        json.dump(record, temporary)
    os.replace(temporary.name, file)


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
