"""Predict what others measured: ``python -m benchmarks.predictions``, some minutes, writes docs/predictions.md.

With ``--fit`` it prints, for each device, the ratios that its constants would have to change by.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from crossmae_kernels.command import run_command

# Nothing is interpreted; Triton reads this when it is imported.
os.environ.pop("TRITON_INTERPRET", None)

DOCUMENT = Path(__file__).parents[2] / "docs" / "predictions.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Predict all, write the document, print it."""
    from benchmarks.predictions.comparison import predicted
    from benchmarks.predictions.published import PUBLISHED
    from benchmarks.predictions.report import document, summary

    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args(argv)
    rows = []
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for row in pool.map(predicted, range(len(PUBLISHED))):
            published = PUBLISHED[row.place]
            ratio = row.microseconds / published.microseconds
            print(f"{published.device:10}{published.name:52}{ratio:6.2f}  {row.limiter} {row.failed}", flush=True)
            rows.append(row)
    if options.fit:
        for device in dict.fromkeys(published.device for published in PUBLISHED):
            ratios = [row.microseconds / PUBLISHED[row.place].microseconds for row in rows
                      if PUBLISHED[row.place].device == device and PUBLISHED[row.place].fitted]  # fmt: skip
            print(f"{device}: {', '.join(f'{ratio:.3f}' for ratio in ratios)}" if ratios else f"{device}: none fitted")
        return 0
    DOCUMENT.write_text(document(rows), encoding="utf-8")
    print(f"{DOCUMENT}\n{summary(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.predictions", main))
