"""Recognise files that are not checkpoints, to say what they are."""

import pickletools
import re
from pathlib import Path

_LOOKS = [
    (rb"\s*<(!doctype|html|\?xml|head|body)", "an HTML or XML page, as servers send instead of a missing file"),
    (rb"version https://git-lfs", "a git-LFS pointer: fetch the file itself with git lfs pull"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP", "an image"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x89HDF", "an HDF5 file, perhaps from Keras"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ", "compressed: unpack it first"),
    # JSON is text; a NUL byte is part of the length at the start of a safetensors file.
    (rb"\s*[\[{][^\0]*\Z", "JSON"),
    (rb"\0+\Z", "zeros: an incomplete copy or download"),
    (rb"\Z", "empty"),
]


def looks_like(head: bytes) -> str | None:
    """What kind of file begins with these bytes; None for a checkpoint or an unrecognised file.

    512 bytes are enough.
    """
    return next((what for pattern, what in _LOOKS if re.match(pattern, head, re.IGNORECASE | re.DOTALL)), None)


def first_class(path: Path) -> str | None:
    """The first class or function named in a bare pickle, found without unpickling it; None if there is none.

    PyTorch reports it only for protocol 2, its own, and not for Python's default protocol.
    """
    words: list[str] = []
    try:
        with path.open("rb") as file:
            if file.read(1) != b"\x80":  # text may look like opcodes of protocols 0 and 1
                return None
            file.seek(0)
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if operation.name == "STACK_GLOBAL":
                    return ".".join(words[-2:])
                if isinstance(argument, str):
                    words.append(argument)
    except Exception:  # a damaged pickle may raise anything
        return None
    return None
