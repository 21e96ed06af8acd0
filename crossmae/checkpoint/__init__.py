"""Checkpoints: our own files, those of the CrossMAE and MAE releases and of timm, and Hugging Face folders.

Loading never runs code: only tensors, plain values and a few classes that merely hold values are ever unpickled.
If a file lacks a setting, ``load`` asks for it, or assumes it with a ``CheckpointWarning``.
"""

from crossmae.checkpoint.encoders import load_encoder
from crossmae.checkpoint.loading import CheckpointWarning, load
from crossmae.checkpoint.release import from_release, to_release
from crossmae.checkpoint.saving import save, save_state

__all__ = ["CheckpointWarning", "from_release", "load", "load_encoder", "save", "save_state", "to_release"]
