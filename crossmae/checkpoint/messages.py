"""How messages list many things at once."""

from collections.abc import Sequence

_NAMED = 5


class ArgumentError(TypeError, ValueError):
    """An argument that does not exist or that a checkpoint contradicts; to a command's user it is a wrong value."""


def first_few(names: Sequence[str], of: int | None = None, kind: str = "tensors", separator: str = ", ") -> str:
    """The first names and the number of the others, so that a message stays on one line."""
    listed = separator.join(names[:_NAMED])
    if len(names) > _NAMED:
        listed += f"{separator}and {len(names) - _NAMED} more"
    return listed if of is None else f"{listed} ({len(names)} of {of} {kind})"
