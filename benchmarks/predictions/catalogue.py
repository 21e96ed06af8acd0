"""Tables of kernels on an H100, in docs/design.md: ``python -m benchmarks.predictions.catalogue``.

Each is compiled and predicted once, at its first shape of ``crossmae audit``, in a minute. What some were
before is in ``before.json``.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.records import ROOT
from benchmarks.report import insert
from crossmae_kernels.audit.calls import Call
from crossmae_kernels.audit.cases import IMAGES, Case, cases, first_of_each_kernel
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.recording import record as recorded
from crossmae_kernels.audit.reports import reports
from crossmae_kernels.command import run_command
from crossmae_kernels.testing import Draw, problems
from crossmae_kernels.testing.problem import Problem

PAGE = ROOT / "docs" / "design.md"
BEFORE = Path(__file__).parent / "before.json"
BATCH = 1024
"""Images of the figures before."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables."""
    argparse.ArgumentParser(prog="python -m benchmarks.predictions.catalogue", description=__doc__).parse_args(argv)
    once = first_of_each_kernel(cases(devices=[DEVICES["h100"]], dtypes=["bf16"]))
    insert(PAGE, "kernels", table([*reports(once, processes=2)]))
    known = json.loads(BEFORE.read_text("utf-8"))["kernels"]
    chosen = same_as(known, decoder())
    insert(PAGE, "before", beside(known, [*reports(chosen, processes=2)]))


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


def decoder() -> list[Case]:
    """What the operations of ViT-B's decoder launch on an H100 in bfloat16, and those of patches on uint8."""
    found, device = [], DEVICES["h100"]
    with recorded(device.limits) as launches:
        for call in _calls(Draw(), (BATCH, 49)):
            launches.clear()
            call.run(torch.bfloat16)
            found += [Case(call.problem.label, device, "bf16", launch) for launch in launches]
    return found


def _calls(draw: Draw, rows: tuple[int, int]) -> Iterator[Call]:
    for wide in (True, False):
        yield Call(problems.mix_feature_maps(draw, (BATCH, 50), 13, 12, 768), autocast=wide)
    yield Call(problems.cross_attention_kvpacked(draw, *rows, 50, 16, 32))
    for hidden in ("recompute", "save"):
        yield _tiled(problems.mlp(draw, rows, 512, 2048, hidden))
    yield _tiled(problems.linear_residual(draw, rows, 512, 512))
    yield Call(problems.gather_patches(draw, *rows, 16, (14, 14), pixels=torch.uint8), autocast=True)
    yield Call(problems.patch_loss(draw, *rows, 16, (14, 14), pixels=torch.uint8))


def _tiled(problem: Problem) -> Call:
    return Call(problems.in_form(problem, "tiled"), autocast=True)


def same_as(known: Sequence[dict[str, Any]], found: Sequence[Case]) -> list[Case]:
    """The case of each figure before: of its kernel and label, in the order of launches.

    Raises:
        ValueError: if there is no such case any more.
    """
    chosen = []
    for one in known:
        alike = [case for case in found if (case.launch.name, case.label) == (f"{one['kernel']}_kernel", one["label"])]
        if len(alike) <= one["at"]:
            raise ValueError(f"{one['kernel']} at {one['label']!r}: need launch {one['at']}, there are {len(alike)}")
        chosen.append(alike[one["at"]])
    return chosen


def beside(known: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> str:
    """Figures before, and those of the audit's records."""
    rows = []
    for one, record in zip(known, found, strict=True):
        now = {"instructions": record["instructions"], "registers": record["registers"]}
        now |= {"programs": record["occupancy"], "microseconds": record["microseconds"]}
        cells = [_changed(f"{one[name]:,.0f}", f"{value:,.0f}") for name, value in now.items()]
        limiter = _changed(one["limiter"], record["limiter"])
        kernel = ", ".join(filter(None, [one["kernel"], one["what"]]))
        rows.append([kernel, one["label"], *cells[:3], f"{record['moved'] / 1e6:,.0f}", cells[3], limiter])
    headers = [
        "kernel", "at", "instructions a warp", "registers", "programs a multiprocessor", "MB of DRAM now",
        "µs predicted", "limited by",
    ]  # fmt: skip
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"


def _changed(before: str, now: str) -> str:
    return now if before == now else f"{before} -> {now}"


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.predictions.catalogue", main))
