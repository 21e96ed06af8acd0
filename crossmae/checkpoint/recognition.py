"""What a file that is no checkpoint is instead, by its first bytes."""

import re

_LOOKS = [
    (rb"\s*<(!doctype|html|\?xml|head|body)", "an HTML or XML page, such as a server sends instead of a file"),
    (rb"version https://git-lfs", "a git-LFS pointer: fetch the file itself with git lfs pull"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP", "an image"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x89HDF", "an HDF5 file, of Keras perhaps"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ", "compressed: unpack it first"),
    # Text: zeros would be of the length that a safetensors file begins with.
    (rb"\s*[\[{][^\0]*\Z", "JSON"),
    (rb"\0+\Z", "zeros: an incomplete copy or download"),
    (rb"\Z", "empty"),
]


def looks_like(head: bytes) -> str | None:
    """What a file is that begins like this; None for a checkpoint, or what is not recognised.

    The first 512 bytes are enough.
    """
    return next((what for pattern, what in _LOOKS if re.match(pattern, head, re.IGNORECASE | re.DOTALL)), None)
