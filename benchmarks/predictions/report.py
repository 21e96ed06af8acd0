"""docs/predictions.md: published times, predicted times, and how far apart they are."""

import statistics
import textwrap
from collections.abc import Sequence

from scipy.stats import kendalltau
from tabulate import tabulate

from benchmarks.predictions.comparison import Row
from benchmarks.predictions.measurement import Published
from benchmarks.predictions.published import PUBLISHED
from crossmae_kernels.audit.prediction import SPREAD

# Of the median error, of the worst, and of Kendall's tau.
GOALS = 0.10, 0.35, 0.7

HEAD = """# Predicted times beside published ones

Written by `python -m benchmarks.predictions`. Each kernel is written in `benchmarks/predictions/kernels.py` with the
published tiles, compiled by the installed Triton for the GPU named, and predicted from its machine code just as
`crossmae audit` predicts this package's kernels. The published times come from other versions of Triton. For an
autotuned kernel, the fastest prediction counts. Products of cuBLAS and copies have no machine code here; they are
estimated as `crossmae plan` estimates a library's operators. No GPU was at hand: nothing here was measured by this
package.

"""

TAIL = """
Rows in *italics* were used to set a device's sustained clock or share of bandwidth, and are left out of the errors.
Of A100, the share of bandwidth was set to copies by BabelStream, between what they reach on 40 and on 80 GB.
Second-hand numbers were transcribed from the source by others and not checked against it.

What the documentation of Triton was built on is not named there. Additions of vectors move 1,686 GB/s in the same
build, more than the 1,555 of an A100 of 40 GB, and products stay at 220 TFLOPS, as on A100s for PCIe; so an A100 of
80 GB for PCIe is assumed. Where two builds of it print one kernel's rates, both are kept; they differ by up to 19%.

What is far off, and why: a kernel of which one program fills a multiprocessor is predicted to load, compute and store
in turn, where GPUs let other multiprocessors have the bandwidth meanwhile (layer norm of 16,384 columns). Short kernels
and small products take longer than predicted, since their launches are measured, too. GeForce cards, of which no clock
was fitted, run faster than assumed, and L4 is slowed by its limit of 72 W.

Not included are FlashAttention 2 and 3 (code of other compilers); attention on A100, for which no table was found that
names the GPU, and where the model is likely too fast, since it lets exponentials hide behind tensor cores as well as on
Hopper; layer norm's backward pass of up to 8,192 columns in Triton's tutorial 05, whose times are those of its calls,
and its forward pass, which the documentation does not print; cuBLAS by size on H200 and RTX A6000, and kernels of
Triton on L4, RTX 4090, RTX A6000 and H200, of which no table was found that names the GPU and the tiles.
"""


def summary(rows: Sequence[Row]) -> str:
    """How far off the predictions are that nothing was fitted to, from machine code and of libraries."""
    text = (
        f"For the {_errors(_compared(rows, False), 'kernels')} "
        f"For the {_errors(_compared(rows, True), 'products and copies of libraries')}"
    )
    return f"{textwrap.fill(text, 120)}\n\n{_by_gpu(rows)}"


def _compared(rows: Sequence[Row], of_a_library: bool) -> list[tuple[Published, Row]]:
    known = [(PUBLISHED[row.place], row) for row in rows if not row.failed]
    return [(published, row) for published, row in known if published.of_a_library == of_a_library]


def _ratios(compared: Sequence[tuple[Published, Row]]) -> list[float]:
    return [row.microseconds / known.microseconds for known, row in compared if not known.fitted]


def _errors(compared: Sequence[tuple[Published, Row]], what: str) -> str:
    ratios = _ratios(compared)
    errors = [abs(ratio - 1) for ratio in ratios]
    median = statistics.median(errors)
    within = sum(1 / (1 + SPREAD) <= ratio <= 1 + SPREAD for ratio in ratios)
    return (
        f"{len(errors)} times of {what} that nothing was fitted to, the median error is {median:.0%} and the worst "
        f"{max(errors):.0%}; {within} lie within the interval printed with predictions, from "
        f"{1 / (1 + SPREAD) - 1:.0%} to +{SPREAD:.0%}."
    )


def _by_gpu(rows: Sequence[Row]) -> str:
    """Errors on each GPU, and whether its rates are ranked as published; goals that are missed are in bold."""
    median_goal, worst_goal, order_goal = GOALS
    table = []
    for device in dict.fromkeys(published.device for published in PUBLISHED):
        cells = []
        for of_a_library in (False, True):
            there = [(known, row) for known, row in _compared(rows, of_a_library) if known.device == device]
            errors = [abs(ratio - 1) for ratio in _ratios(there)]
            if errors:
                median, worst = statistics.median(errors), max(errors)
                cells += [f"{len(errors)}", _bold(f"{median:.0%}", median > median_goal)]
                cells += [_bold(f"{worst:.0%}", worst > worst_goal)]
            else:
                cells += ["", "", ""]
            orders = [(_order(there, unit), unit) for unit in ("TFLOPS", "GB/s")]
            known_orders = [_bold(f"{tau:.2f} in {unit}", tau < order_goal) for tau, unit in orders if tau is not None]
            cells.append(", ".join(known_orders))
        if any(cells):
            table.append([device, *cells])
    errors_and_order = ("median error", "worst", "order")
    headers = ["GPU", "kernels", *errors_and_order, "of libraries", *errors_and_order]
    return (
        tabulate(table, headers, tablefmt="github", disable_numparse=True)
        + "\n\nOrder is Kendall's tau of three rates or more, with those in italics. In **bold** is what misses the "
        f"goals: a median\nerror of {median_goal:.0%}, a worst of {worst_goal:.0%}, an order of {order_goal}.\n"
    )


def _order(compared: Sequence[tuple[Published, Row]], unit: str) -> float | None:
    same = [(known, row) for known, row in compared if known.unit == unit]
    if len(same) < 3:
        return None
    return float(
        kendalltau([known.rate for known, _ in same], [known.work / row.microseconds for known, row in same]).statistic
    )


def _bold(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text


def document(rows: Sequence[Row]) -> str:
    """The whole page; sources are numbered, since they would make the tables too wide."""
    sources = list(dict.fromkeys(known.source for known in PUBLISHED))
    listed = "\n".join(f"{number}. {source}" for number, source in enumerate(sources, 1))
    kernels, libraries = (
        [row for row in rows if PUBLISHED[row.place].of_a_library == of_a_library] for of_a_library in (False, True)
    )
    return (
        f"{HEAD}{summary(rows)}\n## Kernels\n\n{_table(kernels, sources)}\n\n## Products and copies of libraries\n\n"
        f"{_table(libraries, sources)}\n\n## Sources\n\n{listed}\n{TAIL}"
    )


def _table(rows: Sequence[Row], sources: Sequence[str]) -> str:
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
    return tabulate(table, headers, tablefmt="github")
