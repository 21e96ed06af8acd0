"""What is known of a case as one flat record, from disk where nothing that decides it has changed."""

import hashlib
import importlib
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossmae_kernels.audit.cases import Case, shortcomings
from crossmae_kernels.audit.compilation import (
    NO_DISASSEMBLER,
    CompilationError,
    Kernel,
    assembly_of,
    compile_launch,
    disassembler,
)
from crossmae_kernels.audit.prediction import SPREAD, predict
from crossmae_kernels.runtime.records import cache_directory, versions


def reports(cases: Sequence[Case], processes: int) -> Iterator[dict[str, Any]]:
    """``report`` of each case, in their order, by so many processes."""
    if not cases:
        return
    # Fresh processes: PyTorch's threads do not survive a fork. This process alone reports Ctrl-C.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=signal.signal, initargs=quiet) as pool:
        yield from pool.map(report, cases)


def report(case: Case) -> dict[str, Any]:
    """Compile and predict a case; where it cannot be, ``shortcomings`` or ``unpredicted`` say why."""
    file = cache_directory() / "audit" / f"{_key(case)}.json"
    try:
        known: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        known = _report(case)
        _keep(file, known)
    return known


def judged(case: Case) -> tuple[dict[str, Any], Kernel | None]:
    """Compile a case: what the machine code tells at a glance, and the code, if there is any."""
    record: dict[str, Any] = {
        "kernel": case.launch.name,
        "label": case.label,
        "device": case.device.name,
        "arch": case.device.limits.capability,
        "dtype": case.dtype,
        "configuration": case.launch.options,
    }
    try:
        kernel = compile_launch(case.launch, case.device.limits.capability)
    except CompilationError as error:
        return {**record, "shortcomings": [str(error)]}, None
    assembly = assembly_of(kernel)
    lacking = shortcomings(case, assembly)
    return {**record, **asdict(assembly), "code": len(kernel.code), "shortcomings": lacking}, kernel


def _report(case: Case) -> dict[str, Any]:
    record, kernel = judged(case)
    if kernel is None:
        return record
    if not kernel.code:
        return {**record, "unpredicted": NO_DISASSEMBLER}
    try:
        prediction = predict(case.launch, kernel, case.device)
    except ValueError as error:
        return {**record, "unpredicted": str(error)}
    low, high = prediction.microseconds / (1 + SPREAD), prediction.microseconds * (1 + SPREAD)
    return {**record, **asdict(prediction), "interval": [low, high]}


def _key(case: Case) -> str:
    """Of all that decides a report: the kernel with what it calls, its launch, device, versions, tools, the model."""
    module, name = case.launch.kernel.split(":")
    source = getattr(importlib.import_module(module), name).cache_key
    model = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(repr((source, case, versions(), disassembler(), model)).encode()).hexdigest()[:32]


def _keep(file: Path, record: dict[str, Any]) -> None:
    """For the next time; where nothing can be written it is computed again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{hashlib.sha256(repr(record).encode()).hexdigest()[:8]}.tmp")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(file)
    except OSError:
        return
