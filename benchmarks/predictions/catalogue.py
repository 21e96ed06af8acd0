"""Tables of kernels on an H100, in docs/design.md: ``python -m benchmarks.predictions.catalogue``.

Each is compiled and predicted once, at its first shape of ``crossmae audit``, in a minute. What some were
before is in ``before.json``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.records import ROOT
from benchmarks.report import insert
from crossmae_kernels.audit.cases import IMAGES, Case, cases, first_of_each_kernel
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.reports import reports
from crossmae_kernels.command import run_command

PAGE = ROOT / "docs" / "design.md"
BEFORE = Path(__file__).parent / "before.json"
BATCH = 1024
"""Images of the figures before."""
TOKENS = 50 * BATCH
"""Of an image the visible patches and the class token, which mixing's programs take in turn."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables."""
    argparse.ArgumentParser(prog="python -m benchmarks.predictions.catalogue", description=__doc__).parse_args(argv)
    once = first_of_each_kernel(cases(devices=[DEVICES["h100"]], dtypes=["bf16"]))
    insert(PAGE, "kernels", table([*reports(once, processes=2)]))
    known = json.loads(BEFORE.read_text("utf-8"))["kernels"]
    chosen = same_as(known, cases(devices=[DEVICES["h100"]], dtypes=["bf16"], images=BATCH))
    insert(PAGE, "before", beside(known, chosen, [*reports(chosen, processes=2)]))


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


def same_as(known: Sequence[dict[str, Any]], found: Sequence[Case]) -> list[Case]:
    """The case of each figure before: of its kernel and label, in the order of the audit's calls.

    Raises:
        ValueError: if the audit has no such case any more.
    """
    chosen = []
    for one in known:
        alike = [case for case in found if (case.launch.name, case.label) == (f"{one['kernel']}_kernel", one["label"])]
        if len(alike) <= one["at"]:
            raise ValueError(f"{one['kernel']} at {one['label']!r}: need case {one['at']}, the audit has {len(alike)}")
        chosen.append(alike[one["at"]])
    return chosen


def beside(known: Sequence[dict[str, Any]], chosen: Sequence[Case], found: Sequence[dict[str, Any]]) -> str:
    """Figures before, and those of the audit's records in the same units."""
    rows = []
    for one, case, record in zip(known, chosen, found, strict=True):
        shares = case.launch.grid[0] / TOKENS if one["per"] == "token" else 1
        now = {
            "instructions": record["instructions"] * shares,
            "registers": record["registers"],
            "programs": record["occupancy"],
        }
        cells = [f"{_or_unknown(one[name])} -> {value:,.0f}" for name, value in now.items()]
        predicted = f"{record['moved'] / 1e6:.0f}", f"{record['microseconds']:.0f}", record["limiter"]
        rows.append([f"{one['kernel']}, {one['what']}", one["label"], one["per"], *cells, *predicted])
    headers = [
        "kernel", "at", "instructions of a", "instructions", "registers", "programs a multiprocessor",
        "MB of DRAM now", "µs predicted now", "limited by",
    ]  # fmt: skip
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def _or_unknown(figure: int | None) -> str:
    return "?" if figure is None else f"{figure:,}"


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.predictions.catalogue", main))
