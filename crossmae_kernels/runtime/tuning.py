"""What is decided by measurement on a CUDA device: which form of an op serves, and in which tiles a kernel runs.

The first call of an op at a width, a dtype and an order of magnitude of rows times the op's forms, cuBLAS's products
always among them, and takes the fastest from then on: no choice of ours is slower than PyTorch's products. The first
calls of a process take ``BUDGET_SECONDS`` for that; what was not measured by then is chosen by the rule. Tiles follow
their rule until ``crossmae tune`` has timed them. ``CROSSMAE_KERNELS_TUNE``, or ``tuning_mode``, says otherwise:

- ``off``: rules decide, and the disk is not touched;
- ``recall``: what was measured before is used, and nothing is timed;
- ``forms``: forms are timed and tiles recalled, as described, the default;
- ``all``: both are timed, however long it takes.

Nothing is timed while a CUDA graph is captured on the call's stream or a compiler traces. Forms round differently, so
rules alone decide in PyTorch's deterministic mode. Each of several ranks measures for itself and may choose
differently; they choose alike if they find the same record, which ``crossmae tune`` writes beforehand.

A key holds widths and dtype, and of the batch its order of magnitude: launches decide for 2 images and bytes for 1,024,
and a short last batch must not choose for both.
"""

import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from crossmae_kernels.environment import TUNING, Mode, require_option
from crossmae_kernels.runtime import records
from crossmae_kernels.runtime.device import assumed

Configuration = TypeVar("Configuration")
Result = TypeVar("Result")
Kind = Literal["forms", "tiles"]

# The forms of a model, some ten ops of two or three, take a few seconds where their kernels were compiled before, and
# up to a minute where none was, by a guess of 2 s a kernel. A measurement that has begun is finished.
BUDGET_SECONDS = 30.0

# Forms that have not run on a GPU yet. Only the mode `all`, that of `crossmae tune`, tries them.
UNPROVEN = ("persistent",)


_mode = os.environ.get(TUNING, "forms")
_spent = 0.0  # seconds of the budget so far


@dataclass(frozen=True)
class Finding:
    """What is known, and what was chosen, for one key of a kernel or of an op."""

    kind: Kind
    kernel: str
    key: tuple[object, ...]
    """Widths, dtypes and what else the choice depends on."""
    rows: int
    """More than any that it holds for; a power of two."""
    rule: Any
    """What the rule chooses."""
    best: Any
    milliseconds: dict[Any, float]
    """Of each candidate that ran, the fastest first; empty where nothing was measured."""
    file: str
    """Name of its record."""


_known: dict[tuple[object, ...], Finding] = {}


def mode() -> Mode:
    """Who decides in this process.

    Raises:
        ValueError: if the environment names no mode.
    """
    require_option(TUNING, _mode)
    return cast(Mode, _mode)


@contextmanager
def tuning_mode(mode: Mode) -> Iterator[None]:
    """Let this mode hold in all threads until the block ends.

    Raises:
        ValueError: if there is no such mode.
    """
    global _mode
    require_option(TUNING, mode, "tuning_mode: mode")
    before, _mode = _mode, mode
    _forget_rules()
    try:
        yield
    finally:
        _mode = before
        _forget_rules()


def findings() -> list[Finding]:
    """What this process measured or recalled so far, in the order of first calls."""
    return [finding for finding in _known.values() if finding.milliseconds]


def tunes_forms(tensor: Tensor) -> bool:
    """Whether measurements decide which form serves a call on this tensor's device."""
    return mode() != "off" and _on_gpu(tensor) and not torch.are_deterministic_algorithms_enabled() and not assumed()


def tunes_tiles(tensor: Tensor) -> bool:
    """Whether measurements may decide in which tiles kernels run there; where there are none, a launch looks no
    further."""
    return tunes_forms(tensor) and (_mode == "all" or _tiles_recorded())


def run_tuned(
    kernel: str,
    key: tuple[object, ...],
    rows: int,
    rule: Configuration,
    candidates: Callable[..., Sequence[Configuration]],
    run: Callable[..., Result],
    device: torch.device,
    kind: Kind = "tiles",
    arguments: tuple[Any, ...] = (),
) -> Result:
    """Run in the fastest candidate's configuration, or the rule's where nothing is known and nothing may be timed.

    Args:
        kernel: its name, or the op's.
        key: what the choice may depend on.
        rows: of this call, or images, or whatever grows with the batch; the choice depends on its number of bits.
        rule: the analytic choice, a frozen dataclass or a name.
        candidates: from the arguments, further configurations to time.
        run: from the configuration and the arguments, launches the kernel once; writes nothing that a later launch
            does not write again.
        device: where it runs, a CUDA device.
        kind: what candidates are, forms of an op or tiles of a kernel.
        arguments: for both; functions that close over them would be made in every call.
    """
    place = (kind, kernel, device, rows.bit_length(), key)
    finding = _known.get(place)
    if finding is None:
        finding = _find(place, rule, candidates, run, arguments)
    best: Configuration = finding.best
    try:
        return run(best, *arguments)
    except Exception as error:
        if best == rule or not refused(error):
            raise
        _known[place] = replace(finding, best=rule, milliseconds={})
        records.forget(finding.file)
        records.warn(f"{kernel} no longer runs as {finding.file} has it, which is forgotten: {error}")
    return run(rule, *arguments)


def _find(
    place: tuple[Any, ...],
    rule: Configuration,
    candidates: Callable[..., Sequence[Configuration]],
    run: Callable[..., object],
    arguments: tuple[Any, ...],
) -> Finding:
    """Recall or measure; without either the rule's choice, which holds until the mode changes."""
    global _spent
    kind, kernel, device, bits, widths = place
    key = (kernel, torch.cuda.get_device_name(device), records.versions(), *widths, f"{bits} bits of rows")
    file = records.name_of(f"{kind}.{kernel}", key)
    choices = [*dict.fromkeys([rule, *candidates(*arguments)])]
    thorough = _mode == "all"
    times, final = records.recall(file, key, choices, thorough), True
    if not times and (thorough or (_mode == kind and _spent < BUDGET_SECONDS)):
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing() or torch.compiler.is_compiling():
                final = False  # a later call may measure
            else:
                begun = time.monotonic()
                proven = [choice for choice in choices if thorough or choice not in UNPROVEN]
                times, whole = timed(proven, lambda choice: run(choice, *arguments), _milliseconds)
                _spent += time.monotonic() - begun
                if times and whole:
                    records.remember(file, key, times, thorough)
    finding = Finding(kind, kernel, widths, 1 << bits, rule, next(iter(times), rule), times, file)
    if final:
        _known[place] = finding
    return finding


def timed(
    candidates: Sequence[Configuration],
    run: Callable[[Configuration], object],
    milliseconds: Callable[[Callable[[], object]], float],
) -> tuple[dict[Configuration, float], bool]:
    """Milliseconds of each candidate, the fastest first, and whether another time would give the same candidates.

    Skips candidates that are refused, and those for which there is not enough memory now.
    """
    times: dict[Configuration, float] = {}
    whole = True
    for candidate in candidates:
        try:
            times[candidate] = milliseconds(lambda candidate=candidate: run(candidate))  # type: ignore[misc]
        except torch.OutOfMemoryError:
            whole = False
        except Exception as error:
            if not refused(error):
                raise
    return dict(sorted(times.items(), key=lambda item: item[1])), whole


def refused(error: Exception) -> bool:
    """Whether Triton, its compiler or the assembler refused a kernel, for its resources or otherwise: nothing ran."""
    from triton import TritonError

    if isinstance(error, TritonError):
        return True
    # Triton (3.6 to 3.8) passes LLVM's failures on as plain RuntimeErrors. Those of the device are of a class of their
    # own.
    return type(error) is RuntimeError and any(failure in str(error) for failure in LLVM_FAILURES)


LLVM_FAILURES = "PassManager::run failed", "failed to translate module to LLVM IR"


def _on_gpu(tensor: Tensor) -> bool:
    """Replaced in tests."""
    return tensor.is_cuda


@functools.cache
def _tiles_recorded() -> bool:
    return records.present("tiles.*.json")


def _forget_rules() -> None:
    """Drop what rules chose: another mode may measure it."""
    for place in [place for place, finding in _known.items() if not finding.milliseconds]:
        del _known[place]
    _tiles_recorded.cache_clear()


def _milliseconds(run: Callable[[], object]) -> float:
    """Median time of a launch by CUDA events, after the first ones that compile and warm up.

    Nothing is waited for in between, as in training: where Python is slower than the device, that is what is measured.
    """
    for _ in range(3):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(21)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    events[-1].synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in itertools.pairwise(events))
