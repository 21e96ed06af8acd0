"""Compile every kernel for GPUs that are not there: ``python -m crossmae_kernels.audit [--json]``.

Exit code 1 if any spills, does not fit, or leaves tensor cores or wide loads unused.
"""

import argparse
import json
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from crossmae_kernels.audit.calls import CALLS, DTYPES
from crossmae_kernels.audit.cases import DEVICES, cases, report


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each case, or all as JSON."""
    parser = argparse.ArgumentParser(prog="python -m crossmae_kernels.audit", description=__doc__)
    parser.add_argument("--ops", nargs="+", choices=list(CALLS), default=[*CALLS])
    parser.add_argument("--architectures", nargs="+", type=int, choices=list(DEVICES), default=[*DEVICES])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=[*DTYPES])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one list of records instead of a table")
    options = parser.parse_args(argv)
    chosen = cases(options.ops, options.architectures, options.dtypes)
    failed = False
    records = []
    # Fresh processes: PyTorch's threads do not survive a fork. This process alone reports Ctrl-C.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, spawn, initializer=signal.signal, initargs=quiet) as pool:
        for record in pool.map(report, chosen):
            records.append(record)
            failed = failed or bool(record["shortcomings"])
            if not options.json:
                print(_line(record), flush=True)
    if options.json:
        json.dump(records, sys.stdout)
    return int(failed)


def _line(record: dict[str, object]) -> str:
    head = f"sm_{record['arch']:<4}{record['dtype']:5}{record['kernel']:23}{record['label']:44}"
    if "registers" not in record:
        return f"{head}{record['shortcomings']}"
    tensor_core = "+".join(record["tensor_core"]) or "-"  # type: ignore[arg-type]
    verdict = "; ".join(record["shortcomings"]) or "ok"  # type: ignore[arg-type]
    return (
        f"{head}registers {record['registers']:<4}spilled {record['spilled']:<3}shared {record['shared']:<7}"
        f"{tensor_core:12}load {record['widest_load']}  {verdict}"
    )
