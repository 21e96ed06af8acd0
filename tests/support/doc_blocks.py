"""Blocks of Python in documents, each a program of its own."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONAL = ("timm", "torchvision", "transformers")  # blocks that import one of these are skipped without it


def blocks_of(document):
    """Test parameters of a document's blocks, path relative to the repository: code, named by document and line."""
    text = (ROOT / document).read_text("utf-8")
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        # Empty lines, so that a traceback has the document's lines.
        found.append(pytest.param("\n" * line + match[1], document, id=f"{document}:{line}"))
    return found


def run(code, document):
    """Run a block as a program."""
    try:
        exec(compile(code, document, "exec"), {"__name__": "__main__"})
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
