"""Tensor names of another library's layout, read and written by one table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Names:
    """Prefixes of names, theirs and the releases', of an encoder or a whole model.

    ``blocks`` come before a block's number, ``parts`` after it, ``others`` have none. If they spell one name in several
    ways, all are read and the first is written.
    """

    others: Pairs
    blocks: Pairs
    parts: Pairs

    def read(self, name: str) -> str:
        """The releases' name for one of theirs; unknown names are kept."""
        return self._translated(name, 0, 1)

    def written(self, name: str) -> str:
        """Their name for one of the releases'."""
        return self._translated(name, 1, 0)

    def _translated(self, name: str, source: int, target: int) -> str:
        for block in self.blocks:
            if match := re.match(rf"{re.escape(block[source])}(\d+\.)", name):
                rest = name[match.end() :]
                return block[target] + match[1] + _replaced(rest, self.parts, source, target)
        return _replaced(name, self.others, source, target)


def _replaced(name: str, pairs: Pairs, source: int, target: int) -> str:
    """The name with its prefix replaced, by the first pair that has it."""
    for pair in pairs:
        if name.startswith(pair[source]):
            return pair[target] + name.removeprefix(pair[source])
    return name
