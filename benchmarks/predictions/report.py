"""docs/predictions.md: published times, predicted times, and how far apart they are."""

import statistics
from collections.abc import Sequence

from scipy.stats import kendalltau
from tabulate import tabulate

from benchmarks.predictions.comparison import Row
from benchmarks.predictions.published import PUBLISHED
from crossmae_kernels.audit.prediction import SPREAD

HEAD = """# Predicted times beside published ones

Written by `python -m benchmarks.predictions`. Every kernel is written in `benchmarks/predictions/kernels.py` with the
tiles that were published, compiled by the Triton of this installation for the GPU named, and predicted from its machine
code as `crossmae audit` predicts this package's kernels. Published times come from other versions of Triton. Of a
kernel that was autotuned the fastest prediction counts. No GPU was at hand: this package measured nothing here.

"""

TAIL = """
Rows in *italics* are those that a device's sustained clock or share of bandwidth was set by, and left out of errors.
Second-hand numbers were transcribed from the source by others and not checked against it.
Not here are layer norm (of Triton's tutorial 05 only the backward pass is published, whose times are overhead for most
sizes), FlashAttention 2 and 3 and cuBLAS (other compilers' code), and attention on A100, of which no table was found
that names the GPU; the model is likely too fast there, since it lets exponentials hide behind tensor cores as well as
on Hopper.
"""


def summary(rows: Sequence[Row]) -> str:
    """How far off times are that nothing was fitted to, and whether rates come in the right order on each GPU."""
    compared = [(PUBLISHED[row.place], row) for row in rows if not row.failed]
    ratios = [row.microseconds / known.microseconds for known, row in compared if not known.fitted]
    errors = [abs(ratio - 1) for ratio in ratios]
    within = sum(1 / (1 + SPREAD) <= ratio <= 1 + SPREAD for ratio in ratios)
    orders = []
    for device, unit in dict.fromkeys((known.device, known.unit) for known, _ in compared):
        same = [(known, row) for known, row in compared if (known.device, known.unit) == (device, unit)]
        if len(same) > 2:
            tau = kendalltau([known.rate for known, _ in same], [known.work / row.microseconds for known, row in same])
            orders.append(f"{tau.statistic:.2f} on {device} ({len(same)} in {unit})")
    return (
        f"Of {len(errors)} times that nothing was fitted to: median error {statistics.median(errors):.0%}, worst "
        f"{max(errors):.0%}; {within} lie within the interval that predictions are printed with, from "
        f"{1 / (1 + SPREAD) - 1:.0%} to +{SPREAD:.0%} of them. "
        f"Order of the rates, Kendall's tau: {', '.join(orders)}.\n"
    )


def document(rows: Sequence[Row]) -> str:
    """The whole file."""
    table = []
    for row in rows:
        known = PUBLISHED[row.place]
        mark = "*" if known.fitted else ""
        outcome = [row.failed, "", ""] if row.failed else [
            f"{row.microseconds:,.0f}", f"{row.microseconds / known.microseconds - 1:+.0%}", row.limiter
        ]  # fmt: skip
        table.append([
            f"{mark}{known.name}{mark}", known.device, f"{known.rate:,.0f} {known.unit}", f"{known.microseconds:,.0f}",
            *outcome, known.source,
        ])  # fmt: skip
    headers = ["kernel", "GPU", "published", "µs published", "µs predicted", "error", "limit", "source"]
    return HEAD + summary(rows) + "\n" + tabulate(table, headers, tablefmt="github") + "\n" + TAIL
