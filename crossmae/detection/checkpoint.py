"""A detector's checkpoint: its encoder, for ``crossmae.load``, and beside it the rest of the detector."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from crossmae.checkpoint import load
from crossmae.detection.detector import Detector, HeadConfig
from crossmae.training.run_state import HEAD, MODEL, Checkpoints

_KEY = "crossmae_detector"


def head_metadata(head: HeadConfig) -> dict[str, str]:
    """Metadata for the file of a detector's head."""
    return {_KEY: json.dumps(asdict(head))}


def load_detector(path: Path) -> Detector:
    """Load the detector of a detection run's checkpoint, or of the newest checkpoint in a run's folder.

    Raises:
        FileNotFoundError: if there is no such folder, or no detector in it.
        ValueError: if it does not hold a detector.
    """
    path = checkpoint_in(path)
    if not (path / HEAD).is_file():
        raise FileNotFoundError(f"{path} holds no detector: it has no {HEAD}")
    try:
        with safe_open(path / HEAD, framework="pt") as opened:
            values = json.loads((opened.metadata() or {})[_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path / HEAD} is not a detector's head: {error!r}") from error
    categories = tuple((number, name) for number, name in values["categories"])
    detector = Detector(load(path / MODEL), HeadConfig(**{**values, "categories": categories}))
    missing, unexpected = detector.load_state_dict(load_file(path / HEAD), strict=False)
    of_the_head = [name for name in missing if not name.startswith("model.")]
    if of_the_head or unexpected:
        raise ValueError(f"{path / HEAD} does not fit the detector: {', '.join([*of_the_head, *unexpected][:5])}")
    return detector.eval()


def checkpoint_in(path: Path) -> Path:
    """A checkpoint's folder: ``path`` itself, or the newest checkpoint in a run's folder."""
    there = Checkpoints(path / "checkpoints", 1, None).there()
    return there[-1].path if there else path
