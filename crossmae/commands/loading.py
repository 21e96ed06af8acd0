"""Load checkpoints for commands, printing warnings and reporting errors in one line."""

import warnings
from typing import Any

from crossmae.checkpoint import CheckpointWarning, load
from crossmae.model import MaskedAutoencoder


def load_aloud(checkpoint: str, options: dict[str, Any]) -> MaskedAutoencoder:
    """Load a checkpoint's model and print what was assumed.

    Raises ValueError, including for options that do not exist or that the checkpoint stores, or FileNotFoundError.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CheckpointWarning)
        model = load(checkpoint, **options)
    for warning in said:
        print(warning.message)
    return model
