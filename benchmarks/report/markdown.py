"""Tables in Markdown, without a package that a machine for measuring may not have; and a place in a file for them."""

import re
from collections.abc import Sequence
from pathlib import Path

from crossmae.files import replacing


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded, so that the source reads as a table too."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(head) + 2, *(len(row[i]) for row in cells)]) for i, head in enumerate(headers)]
    lines = [_line(headers, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join([*lines, *(_line(row, widths) for row in cells)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def insert(readme: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name: ... -->`` and ``<!-- /name -->``."""
    old = readme.read_text("utf-8")
    new, places = re.subn(
        rf"(<!-- {name}:.*?-->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{text}{m[2]}", old, flags=re.S
    )
    if places != 1:
        raise ValueError(f"{readme} must have one place for {name!r}, has {places}")
    with replacing(readme) as beside:
        beside.write_text(new, "utf-8")
