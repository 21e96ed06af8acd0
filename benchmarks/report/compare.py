"""Two runs of the same machine: what became slower, what faster.

A difference counts if the medians are a tenth apart or more and the ranges from the 20th to the 80th percentile do not
touch: less than that the same code shows against itself.
"""

from dataclasses import dataclass

from benchmarks.records import Record, Run
from benchmarks.report import markdown

FLAGGED = 0.10


@dataclass(frozen=True)
class Change:
    """A record that is in both runs."""

    before: Record
    after: Record

    @property
    def ratio(self) -> float:
        """Time after over time before."""
        return self._times[1]["median"] / self._times[0]["median"]

    @property
    def verdict(self) -> str:
        """``slower``, ``faster`` or nothing."""
        before, after = self._times
        if self.ratio >= 1 + FLAGGED and after["p20"] > before["p80"]:
            return "slower"
        if self.ratio <= 1 / (1 + FLAGGED) and after["p80"] < before["p20"]:
            return "faster"
        return ""

    @property
    def _times(self) -> tuple[dict[str, float], dict[str, float]]:
        """Of the same kind: the device's own time if both have it."""
        kind = "graph" if {"graph"} <= set(self.before.times) & set(self.after.times) else "call"
        return self.before.times[kind], self.after.times[kind]


def changes(before: Run, after: Run) -> list[Change]:
    """Records measured in both."""
    if before.machine["device"] != after.machine["device"]:
        raise ValueError(f"runs of two machines: {before.machine['device']} and {after.machine['device']}")
    return [
        Change(before.records[key], record)
        for key, record in after.records.items()
        if key in before.records and record.times and before.records[key].times
    ]


def comparison(before: Run, after: Run) -> tuple[str, list[Change]]:
    """Markdown with every change that counts, and those that are slow-downs."""
    found = changes(before, after)
    rows = [
        [*change.after.key, f"{change.ratio:.2f}", change.verdict]
        for change in sorted(found, key=lambda change: -change.ratio)
        if change.verdict
    ]
    headers = ["suite", "problem", "contender", "direction", "time after / before", "verdict"]
    lost = [key for key, r in before.records.items() if r.times and key not in after.records]
    text = f"Before: {before.where}\nAfter: {after.where}\n\n{len(found)} measured in both, {len(rows)} changed"
    text += f", {len(lost)} measured before only.\n"
    if rows:
        text += f"\n{markdown.table(headers, rows)}\n"
    return text, [change for change in found if change.verdict == "slower"]
