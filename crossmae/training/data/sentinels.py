"""Detect undeclared sentinel values: far from all other values and often repeated."""

from dataclasses import dataclass, field

import numpy as np

from crossmae.training.data.values import Array

# A measured value has neighbours, and one at the end of a range is rarely repeated exactly. We therefore suspect a
# minimum or maximum that makes up more than REPEATED of all values, if the gap to its neighbour is larger than the
# deviation of the others and than GAPS times the next gap. Examples are -999 below 0 to 3,000 (deviation 866, next gap
# 1), -32767 below most of 16 bits, and 65,535 above 12 bits. Not suspected are clipped values (no gap), no rain or no
# counts (a gap within a deviation), log(1 + count) (gaps of 0.69 and 0.41), labels 0 to 3 (equal gaps), masks of two
# values (no others) and dead pixels (few). A sentinel within a deviation of the others, such as -3000 below -2,000 to
# 10,000, cannot be told from a value.
REPEATED, GAPS = 1e-3, 3


@dataclass
class _End:
    """The three lowest values and the count of the lowest; negate the values for the upper end."""

    lowest: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, values: Array) -> None:
        if len(self.lowest) == 3:
            values = values[values <= self.lowest[2]]  # few, so they are cheap to sort
        found, counts = np.unique(values, return_counts=True)
        if not found.size:
            return
        if not self.lowest or found[0] < self.lowest[0]:
            self.count = 0
        if not self.lowest or found[0] <= self.lowest[0]:
            self.count += int(counts[0])
        self.lowest = sorted({*self.lowest, *found[:3].tolist()})[:3]


class Channel:
    """The values of one channel of many images, added image by image."""

    def __init__(self) -> None:
        self._count, self._total, self._squares = 0, 0.0, 0.0
        self._lower, self._upper = _End(), _End()

    @property
    def low(self) -> float:
        """The lowest value."""
        return min(self._lower.lowest, default=np.inf)

    @property
    def high(self) -> float:
        """The highest value."""
        return -min(self._upper.lowest, default=np.inf)

    def add(self, values: Array) -> None:
        """Add an image's values, of any shape, all finite."""
        if not values.size:
            return
        values = values.ravel().astype(np.float64)
        self._lower.add(values)
        self._upper.add(-values)
        with np.errstate(over="ignore"):
            self._count += values.size
            self._total += float(values.sum())
            self._squares += float(np.square(values).sum())

    def sentinel(self) -> tuple[float, float] | None:
        """A value that looks like a sentinel (see above) and its fraction of all values; None if there is none."""
        for end, sign in ((self._lower, 1.0), (self._upper, -1.0)):
            if len(end.lowest) < 3 or end.count <= REPEATED * self._count:
                continue
            value, others = sign * end.lowest[0], self._count - end.count
            mean = (self._total - end.count * value) / others
            variance = (self._squares - end.count * value**2) / others - mean**2
            gap, next_gap = end.lowest[1] - end.lowest[0], end.lowest[2] - end.lowest[1]
            if gap > max(GAPS * next_gap, max(variance, 0.0) ** 0.5):
                return value, end.count / self._count
        return None
