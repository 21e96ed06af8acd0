"""The environment variables that say who serves ops, and who chooses their forms; PyTorch is not needed to read them.

A wrong value is refused by a command before it begins, and in Python by the first call that asks.
"""

import os
from typing import Literal, get_args

Implementation = Literal["auto", "triton", "reference"]
Mode = Literal["off", "recall", "forms", "all"]

IMPLEMENTATION, TUNING = "CROSSMAE_KERNELS_IMPL", "CROSSMAE_KERNELS_TUNE"
OPTIONS: dict[str, tuple[str, ...]] = {IMPLEMENTATION: get_args(Implementation), TUNING: get_args(Mode)}


def require_option(variable: str, value: str, where: str | None = None) -> None:
    """Raise ValueError unless ``value`` is one that the variable may have; ``where`` names it in the message."""
    if value not in OPTIONS[variable]:
        raise ValueError(f"{where or variable} must be one of {', '.join(OPTIONS[variable])}, got {value!r}")


def require_environment() -> None:
    """Raise ValueError if a variable has a value that it may not have."""
    for variable in OPTIONS:
        if variable in os.environ:
            require_option(variable, os.environ[variable])
