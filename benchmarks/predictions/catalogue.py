"""Table of every kernel on an H100, in docs/design.md: ``python -m benchmarks.predictions.catalogue``.

Each is compiled and predicted once, at its first shape of ``crossmae audit``, in a minute.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from tabulate import tabulate

from benchmarks.records import ROOT
from benchmarks.report import insert
from crossmae_kernels.audit.cases import IMAGES, cases, first_of_each_kernel
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.reports import reports
from crossmae_kernels.command import run_command

PAGE = ROOT / "docs" / "design.md"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.predictions.catalogue", description=__doc__).parse_args(argv)
    once = first_of_each_kernel(cases(devices=[DEVICES["h100"]], dtypes=["bf16"]))
    insert(PAGE, "kernels", table([*reports(once, processes=2)]))


def table(found: Sequence[dict[str, Any]]) -> str:
    """Of the audit's records, which must all be predicted."""
    rows = {
        "kernel": [record["kernel"].removesuffix("_kernel") for record in found],
        "at": [record["label"] for record in found],
        "registers": [record["registers"] for record in found],
        "spilled": [record["spilled"] for record in found],
        "shared memory, KiB": [f"{record['shared'] / 1024:.0f}" for record in found],
        "programs a multiprocessor": [record["occupancy"] for record in found],
        "instructions a warp": [f"{record['instructions']:,.0f}" for record in found],
        "tensor cores": [", ".join(record["tensor_core"]) for record in found],
        "MB of DRAM": [f"{record['moved'] / 1e6:.0f}" for record in found],
        "µs predicted": [f"{record['microseconds']:.0f}" for record in found],
        "limited by": [record["limiter"] for record in found],
    }
    title = f"{IMAGES} images, bfloat16, Triton {version('triton')}; predicted, not measured."
    return f"{title}\n\n{tabulate(rows, headers='keys', tablefmt='github', disable_numparse=True)}\n"


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.predictions.catalogue", main))
