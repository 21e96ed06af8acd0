"""jsonargparse's messages about refused arguments, in plain words."""

import re
from collections.abc import Collection, Mapping

_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list such as [0.5,0.5]",
    "dict": "settings by name",
    "NoneType": "null",
}
_KIND = re.compile(
    r"Literal\[(?P<choices>[^\]]*)\]|(?P<outer>tuple|dict)\[(?P<inner>[^\]]*)\]|<class '(?P<plain>\w+)'>"
)


def in_plain_words(message: str) -> str:
    """Rewrite a message about a value of the wrong type: the option, what it takes, what it got."""
    found = re.fullmatch(r'Parser key "(?P<key>[^"]+)"(?: element \d+)?: (?P<why>.*Expected .*)', message)
    if found is None:
        return message
    why = found["why"]
    came = re.split(r"(?:Got|Given) value: ", why)[-1]
    # Of a union its members stand in front, and then every one's own error.
    kinds = re.search(r"Subtypes: \[(.*)\] Errors:", why)
    taken = [_in_words(kind) for kind in _KIND.finditer(kinds[1] if kinds else why)]
    return f"--{found['key']} must be {' or '.join(dict.fromkeys(taken))}, got {came}"


def _in_words(kind: re.Match[str]) -> str:
    if kind["choices"]:
        return "one of " + kind["choices"].replace("'", "")
    if kind["outer"] == "tuple":
        inner = [part.strip() for part in kind["inner"].split(",")]
        count = "" if inner[-1] == "..." else f"{len(inner)} "
        return f"a list of {count}{'integers' if inner[0] == 'int' else 'numbers'}"
    return _KINDS.get(kind["outer"] or kind["plain"], kind[0])


def missing(names: str, options: Mapping[str, Collection[str]]) -> str:
    """The arguments that a command still needs, as they are typed.

    Args:
        names: such as ``convert.path, convert.to``.
        options: of each argument of the command, by name; none of an argument that is told by its place.
    """
    own = [name.partition(".")[2] for name in names.split(", ")]
    return f"missing {', '.join(next(iter(options[name]), name) for name in own)}"
