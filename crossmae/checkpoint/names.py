"""Names of tensors in another library's layout, read and written from one table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Names:
    """Beginnings of names, theirs and the releases', of an encoder or a whole model.

    ``blocks`` stand in front of a block's number, ``parts`` behind it, ``others`` have none. Where they spell one name
    in several ways, all are read and the first is written.
    """

    others: Pairs
    blocks: Pairs
    parts: Pairs

    def read(self, name: str) -> str:
        """The releases' name for one of theirs; what is unknown stays."""
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
    """The name with another beginning, by the first pair that has its own."""
    for pair in pairs:
        if name.startswith(pair[source]):
            return pair[target] + name.removeprefix(pair[source])
    return name
