"""docs/predictions.md: published times, predicted times, and how far apart they are."""

import statistics
from collections.abc import Sequence

from scipy.stats import kendalltau
from tabulate import tabulate

from benchmarks.predictions.comparison import Row
from benchmarks.predictions.published import PUBLISHED
from crossmae_kernels.audit.prediction import SPREAD

HEAD = """# Predicted times beside published ones

Written by `python -m benchmarks.predictions`. Each kernel is written in `benchmarks/predictions/kernels.py` with the
published tiles, compiled by the installed Triton for the GPU named, and predicted from its machine code just as
`crossmae audit` predicts this package's kernels. The published times come from other versions of Triton. For an
autotuned kernel, the fastest prediction counts. No GPU was at hand: nothing here was measured by this package.

"""

TAIL = """
Rows in *italics* were used to set a device's sustained clock or share of bandwidth, and are left out of the errors.
Second-hand numbers were transcribed from the source by others and not checked against it.

Not included are layer norm (Triton's tutorial 05 publishes only the backward pass, whose times are mostly overhead),
FlashAttention 2 and 3 and cuBLAS (code of other compilers), and attention on A100, for which no table was found that
names the GPU; there the model is likely too fast, since it lets exponentials hide behind tensor cores as well as on
Hopper.
"""


def summary(rows: Sequence[Row]) -> str:
    """How far off the predictions are that nothing was fitted to, and whether they rank each GPU's rates correctly."""
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
        f"For the {len(errors)} times that nothing was fitted to, the median error is {statistics.median(errors):.0%} "
        f"and the worst {max(errors):.0%}; {within} lie within the interval printed with predictions, from "
        f"{1 / (1 + SPREAD) - 1:.0%} to +{SPREAD:.0%}. Order of the rates (Kendall's tau): {', '.join(orders)}.\n"
    )


def document(rows: Sequence[Row]) -> str:
    """The whole page; sources are numbered, since they would make the table too wide."""
    sources = list(dict.fromkeys(known.source for known in PUBLISHED))
    table = []
    for row in rows:
        known = PUBLISHED[row.place]
        mark = "*" if known.fitted else ""
        outcome = [row.failed, "", ""] if row.failed else [
            f"{row.microseconds:,.0f}", f"{row.microseconds / known.microseconds - 1:+.0%}", row.limiter
        ]  # fmt: skip
        table.append([
            f"{mark}{known.name}{mark}", known.device, f"{known.rate:,.0f} {known.unit}", f"{known.microseconds:,.0f}",
            *outcome, f"{sources.index(known.source) + 1}",
        ])  # fmt: skip
    headers = ["kernel", "GPU", "published", "µs published", "µs predicted", "error", "limited by", "source"]
    listed = "\n".join(f"{number}. {source}" for number, source in enumerate(sources, 1))
    cells = tabulate(table, headers, tablefmt="github")
    return f"{HEAD}{summary(rows)}\n{cells}\n\nSources:\n\n{listed}\n{TAIL}"
