"""Check values against annotated types, and normalise sequences to tuples."""

from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin


def as_tuple(value: Any) -> Any:
    """A sequence as a tuple; anything else unchanged."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def pair(size: Any) -> Any:
    """Height and width from a pair or a square's side; anything else is unchanged, for ``Config`` to refuse."""
    return (size, size) if _is(size, int) else as_tuple(size)


def expected_instead(value: object, kind: Any) -> str | None:
    """A description of the values that an annotated type allows, or None if the value is one of them."""
    if _is(value, kind):
        return None
    *words, last = _words(kind)
    return f"{', '.join(words)} or {last}" if words else last


def _is(value: object, kind: Any) -> bool:
    """Whether a value has an annotated type. Integers count as numbers; True and False as neither."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in inner
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(_is, value, kinds))
    if inner:  # a union
        return any(_is(value, one) for one in inner)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _words(kind: Any) -> list[str]:
    """Descriptions of the alternatives that an annotated type allows."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return [repr(value) for value in inner]
    if get_origin(kind) is tuple:
        of = "numbers" if inner[0] is float else "integers"
        return [f"a tuple of {of}" if inner[-1] is ... else f"(height, width), {len(inner)} {of}"]
    if inner:
        return [word for one in inner for word in _words(one)]
    return {int: ["an integer"], float: ["a number"], bool: ["True", "False"], NoneType: ["None"]}[kind]
