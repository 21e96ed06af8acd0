"""The environment variables that choose implementations and forms of ops; reading them does not need PyTorch.

A wrong value is refused by a command before it starts, and in Python by the first call that reads it.
"""

import os
from typing import Literal, get_args

Implementation = Literal["auto", "triton", "reference"]
Mode = Literal["off", "recall", "forms", "all"]

IMPLEMENTATION, TUNING = "CROSSMAE_KERNELS_IMPL", "CROSSMAE_KERNELS_TUNE"
OPTIONS: dict[str, tuple[str, ...]] = {IMPLEMENTATION: get_args(Implementation), TUNING: get_args(Mode)}


def require_option(variable: str, value: str, where: str | None = None) -> None:
    """Raise ValueError unless ``value`` is allowed for the variable; ``where`` names it in the message."""
    if value not in OPTIONS[variable]:
        raise ValueError(f"{where or variable} must be one of {', '.join(OPTIONS[variable])}, got {value!r}")


def require_environment() -> None:
    """Raise ValueError if a variable has an invalid value."""
    for variable in OPTIONS:
        if variable in os.environ:
            require_option(variable, os.environ[variable])
