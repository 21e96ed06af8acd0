"""Checkpoints: our own files, those of CrossMAE's and MAE's releases and of timm, and Hugging Face's folders.

Loading never runs code: tensors, plain values and a few classes that only hold some are all that is ever unpickled.
What a file does not tell is asked for, or assumed with a ``CheckpointWarning``.
"""

from crossmae.checkpoint.encoders import load_encoder
from crossmae.checkpoint.loading import CheckpointWarning, load
from crossmae.checkpoint.release import from_release, to_release
from crossmae.checkpoint.saving import save, save_state

__all__ = ["CheckpointWarning", "from_release", "load", "load_encoder", "save", "save_state", "to_release"]
