"""Blocks of Python in documents, each a program of its own, and commands for a shell."""

import re
import shlex
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


PROGRAMS = ("crossmae", "make", "pip", "pytest", "python", "sbatch", "torchrun")


def commands_of(document):
    """Test parameters of a document's commands, in blocks of bash and within sentences: words, named by their line."""
    text = (ROOT / document).read_text("utf-8")
    found = []
    for match in re.finditer(r"^```bash\n(.*?)^```$|`([^`\n]+)`", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        for command in re.sub(r"\\\n", " ", match[1] or match[2]).splitlines():
            command = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command)  # variables of the environment
            if command.partition(" ")[0] in PROGRAMS and " " in command:
                words = shlex.split(re.sub(r" +> .*", "", command), comments=True)
                found.append(pytest.param(words, id=f"{document}:{line}: {' '.join(words)}"))
    return found


def labels_of(document):
    """What its blocks are said to be of, one each."""
    return re.findall(r"^```(.*)$", (ROOT / document).read_text("utf-8"), re.MULTILINE)[::2]
