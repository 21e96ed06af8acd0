"""A detector's checkpoint: its encoder as ``crossmae.load`` takes it, and beside it the rest of the detector."""

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
    """What is written into the file of a head."""
    return {_KEY: json.dumps(asdict(head))}


def load_detector(path: Path) -> Detector:
    """The detector of a checkpoint of a detection run; of the run's folder, of its newest.

    Raises:
        FileNotFoundError: if there is no such folder, or no detector in it.
        ValueError: if it holds something else.
    """
    path = checkpoint_in(path)
    if not (path / HEAD).is_file():
        raise FileNotFoundError(f"{path} holds no detector: there is no {HEAD} in it")
    try:
        with safe_open(path / HEAD, framework="pt") as opened:
            values = json.loads((opened.metadata() or {})[_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path / HEAD} is not of a detector: {error!r}") from error
    categories = tuple((number, name) for number, name in values["categories"])
    detector = Detector(load(path / MODEL), HeadConfig(**{**values, "categories": categories}))
    missing, unexpected = detector.load_state_dict(load_file(path / HEAD), strict=False)
    of_the_head = [name for name in missing if not name.startswith("model.")]
    if of_the_head or unexpected:
        raise ValueError(f"{path / HEAD} does not fit the detector: {', '.join([*of_the_head, *unexpected][:5])}")
    return detector.eval()


def checkpoint_in(path: Path) -> Path:
    """The folder of a checkpoint: itself, or the newest in the folder of a run."""
    there = Checkpoints(path / "checkpoints", 1, None).there()
    return there[-1].path if there else path
