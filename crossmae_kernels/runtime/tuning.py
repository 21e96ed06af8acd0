"""Choose by measurement on a CUDA device which form of an op runs, and with which tiles a kernel runs.

The first call of an op for a width, a dtype and an order of magnitude of rows times the op's forms, always including
cuBLAS's products or PyTorch's operators, and uses the fastest from then on, so no choice is slower than these. The
first calls of a process may spend ``BUDGET_SECONDS`` on that; anything not measured by then follows the rule. Tiles
follow their rule until ``crossmae tune`` has timed them. ``CROSSMAE_KERNELS_TUNE``, or ``tuning_mode``, changes this:

- ``off``: rules decide, and the disk is not touched; on a CPU too (``runtime.cpu_linear``);
- ``recall``: earlier measurements are used, and nothing is timed;
- ``forms``: forms are timed and tiles recalled, as described above, the default;
- ``all``: both are timed, however long it takes.

Nothing is timed while a CUDA graph is captured on the call's stream or a compiler traces. As forms round differently,
only rules decide in PyTorch's deterministic mode. Each rank measures on its own and may choose differently; all choose
alike if they find the same record, which ``crossmae tune`` writes beforehand.

A key holds widths, dtype and the batch's order of magnitude: launch overhead decides for 2 images and bandwidth for
1,024, and a short last batch must not choose for both.
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

# A model's forms, two or three for each of some ten ops, take a few seconds if their kernels are compiled already, and
# up to a minute if not, guessing 2 s per kernel. A measurement that has begun is finished.
BUDGET_SECONDS = 30.0

# Forms that have not run on a GPU yet. Only the mode `all`, used by `crossmae tune`, tries them.
UNPROVEN = ("persistent",)


_mode = os.environ.get(TUNING, "forms")
_spent = 0.0  # seconds of the budget so far


@dataclass(frozen=True)
class Finding:
    """Measurements and choice for one key of a kernel or an op."""

    kind: Kind
    kernel: str
    key: tuple[object, ...]
    """Widths, dtypes and whatever else the choice depends on."""
    rows: int
    """An exclusive upper bound on the rows it applies to; a power of two."""
    rule: Any
    """The rule's choice."""
    best: Any
    milliseconds: dict[Any, float]
    """Times of each candidate that ran, fastest first; empty if nothing was measured."""
    file: str
    """The name of its record."""


_known: dict[tuple[object, ...], Finding] = {}


def mode() -> Mode:
    """The tuning mode of this process.

    Raises:
        ValueError: if the environment variable is not a mode.
    """
    require_option(TUNING, _mode)
    return cast(Mode, _mode)


@contextmanager
def tuning_mode(mode: Mode) -> Iterator[None]:
    """Use this mode in all threads within the block.

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
    """Everything this process has measured or recalled so far, in the order of first calls."""
    return [finding for finding in _known.values() if finding.milliseconds]


def tunes_forms(tensor: Tensor) -> bool:
    """Whether measurements decide which form runs a call on this tensor's device."""
    return mode() != "off" and _on_gpu(tensor) and not torch.are_deterministic_algorithms_enabled() and not assumed()


def tunes_tiles(tensor: Tensor) -> bool:
    """Whether measurements may decide the tiles of kernels there; if there are none, a launch looks no further."""
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
    rehearse: Callable[..., object] | None = None,
) -> Result:
    """Run with the fastest candidate's configuration, or the rule's if nothing is known and nothing may be timed.

    Args:
        kernel: its name, or the op's.
        key: everything the choice may depend on.
        rows: of this call, or images, or anything that grows with the batch; the choice depends on its bit length.
        rule: the analytic choice, a frozen dataclass or a name.
        candidates: called with the arguments, returns further configurations to time.
        run: called with the configuration and the arguments, launches the kernel once; must only write what a later
            launch writes again.
        device: the CUDA device it runs on.
        kind: whether candidates are forms of an op or tiles of a kernel.
        arguments: for both; closures over them would be created in every call.
        rehearse: called like ``run``, is timed in its place.
    """
    place = (kind, kernel, device, rows.bit_length(), key)
    finding = _known.get(place)
    if finding is None:
        finding = _find(place, rule, candidates, rehearse or run, arguments)
    best: Configuration = finding.best
    try:
        return run(best, *arguments)
    except Exception as error:
        if best == rule or not refused(error):
            raise
        _known[place] = replace(finding, best=rule, milliseconds={})
        records.forget(finding.file)
        records.warn(f"{kernel} no longer runs with the choice in {finding.file}, which is removed: {error}")
    return run(rule, *arguments)


def _find(
    place: tuple[Any, ...],
    rule: Configuration,
    candidates: Callable[..., Sequence[Configuration]],
    run: Callable[..., object],
    arguments: tuple[Any, ...],
) -> Finding:
    """Recall or measure; else use the rule's choice until the mode changes."""
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
    """Milliseconds of each candidate, fastest first, and whether measuring again would give the same candidates.

    Skips candidates that are refused, or for which there is currently not enough memory.
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
    """Whether Triton, its compiler or the assembler refused a kernel before running it, for resources or otherwise."""
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
