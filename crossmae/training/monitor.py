"""What a run reports: a progress bar, TensorBoard, and a JSON Lines log for comparing runs."""

import io
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from crossmae.files import replacing
from crossmae.training.losses import Losses
from crossmae.training.plan import Plan
from crossmae_kernels.command import reason

LOG = "log.jsonl"


class Monitor:
    """Writes ``log.jsonl`` and TensorBoard files into the run's folder and shows a progress bar.

    A log line is one of three kinds: a step and its loss; a number of steps and the seconds of training so far, with
    learning rate, images per second and memory; or a number of steps and the result of an evaluation. When a run
    resumes from step ``first``, log lines from that step on are dropped, as these steps are repeated. ``name`` labels
    the progress bar.
    """

    def __init__(self, folder: Path, plan: Plan, first: int, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._plan = plan
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        earlier = _kept_until(folder / LOG, first)
        self._log, self._waiting = folder / LOG, io.StringIO()
        self._line = tqdm(total=plan.steps, initial=first, desc=name, unit="step", mininterval=1)
        self._step, self._begun = first, time.perf_counter()
        self._seconds = max((entry["seconds"] for entry in earlier if "seconds" in entry), default=0.0)

    def losses(self, losses: Losses) -> None:
        """Log the losses of an interval."""
        for step, loss in enumerate(losses.values, start=losses.first):
            self._write({"step": step, "loss": loss})
        step, now = losses.first + len(losses.values), time.perf_counter()
        rate = (step - self._step) * self._plan.recipe.batch_size / max(now - self._begun, 1e-9)
        self._seconds += now - self._begun
        self._step, self._begun = step, now
        loss, learning_rate = sum(losses.values) / len(losses.values), self._plan.learning_rate(step - 1)
        memory = _memory_in_use() / 2**30
        curves = {"learning_rate": learning_rate, "images_per_second": rate, "memory_gib": memory}
        self._write({"step": step, "seconds": self._seconds, **curves})
        self._flush()
        self.scalars(step, {"loss": loss, **curves})
        self._line.set_postfix_str(f"loss {loss:.4f}, lr {learning_rate:.2e}, {rate:,.0f} images/s, {memory:.1f} GiB")
        self._line.update(step - self._line.n)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars to TensorBoard."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def evaluation(self, step: int, accuracies: Mapping[str, float]) -> None:
        """Log the result of an evaluation."""
        self._write({"step": step, **accuracies})
        self._flush()
        self.scalars(step, {f"evaluation/{name}": value for name, value in accuracies.items()})
        self.say(f"step {step:,}: " + ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items()))

    def picture(self, step: int, path: Path) -> None:
        """Add a picture file to TensorBoard."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self._board.add_image(path.stem, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._line.write(text)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A context whose time does not count as training time."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._begun += time.perf_counter() - begun

    def close(self) -> None:
        """Close the files and the progress bar."""
        self._line.close()
        self._flush()
        self._board.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._waiting.write(json.dumps(entry) + "\n")

    def _flush(self) -> None:
        """Append pending lines to the log; if that fails, they stay pending and training continues."""
        size = self._log.stat().st_size
        try:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(self._waiting.getvalue())
        except OSError as error:
            os.truncate(self._log, size)
            warnings.warn(f"could not write the log {self._log}, will try again: {reason(error)}", stacklevel=2)
        else:
            self._waiting = io.StringIO()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a run's log, without an incomplete last line left by a killed run."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _kept_until(path: Path, first: int) -> list[dict[str, Any]]:
    """Drop the entries of step ``first`` and later from a log; return the others."""
    entries = [e for e in read_log(path) if e["step"] < first or (e["step"] == first and "loss" not in e)]
    with replacing(path) as beside:
        beside.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    return entries


def _memory_in_use() -> int:
    """Peak memory in bytes: allocated on the accelerator, or else resident in the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # macOS counts bytes
