"""Checkpoints for commands: what loading says is printed, what it refuses is one line."""

import warnings
from typing import Any

from crossmae.checkpoint import CheckpointWarning, load
from crossmae.model import MaskedAutoencoder


def load_aloud(checkpoint: str, options: dict[str, Any]) -> MaskedAutoencoder:
    """The model of a checkpoint, with what is assumed of it printed.

    Raises ValueError, also for options that the checkpoint tells itself or that do not exist, and FileNotFoundError.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CheckpointWarning)
        model = load(checkpoint, **options)
    for warning in said:
        print(warning.message)
    return model
