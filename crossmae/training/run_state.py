"""The state of a run on disk: checkpoints are folders, written whole or not at all and read only if unchanged.

``checkpoints/step-00001234/`` holds ``model.safetensors``, for ``crossmae.load``, ``head.safetensors`` (the task's
head, if any), ``averaged.safetensors`` (averages of both, if the task keeps them), ``training.pt`` (the optimizer's
state and the loss scale) and ``manifest.json`` (step, score, and the size and checksum of the other files).
Everything else a run depends on is a function of recipe and step: order, augmentation, masks, learning rate. States are
complete and named by parameter, whatever the number of devices and the sharding, so a run can resume on other devices.
"""

import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from crossmae.checkpoint.saving import CONFIG_KEY, save_state
from crossmae.files import replacing, to_disk
from crossmae.model.config import Config
from crossmae.training.step import Stepper
from crossmae_kernels.command import reason

MODEL, HEAD, AVERAGED = "model.safetensors", "head.safetensors", "averaged.safetensors"
TRAINING, MANIFEST = "training.pt", "manifest.json"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_PREFIX = "model."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, by its manifest; a higher ``score`` is better; it may be None."""

    path: Path
    step: int
    score: float | None


class Checkpoints:
    """The checkpoints in a run's folder."""

    def __init__(self, folder: Path, keep_last: int, keep_every: int | None) -> None:
        self.folder, self._keep_last, self._keep_every = folder, keep_last, keep_every

    def there(self) -> list[Checkpoint]:
        """Checkpoints with a readable manifest, oldest first."""
        found = []
        for path in self.folder.glob("step-*"):
            try:
                manifest = json.loads((path / MANIFEST).read_text("utf-8"))
                found.append(Checkpoint(path, int(manifest["step"]), manifest["score"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def write(self, stepper: Stepper, score: float | None) -> Path:
        """Write the state after ``stepper.step`` steps, then drop checkpoints not to be kept; every device must call.

        Raises OSError, on the first device only, and then leaves everything as before.
        """
        state, training = _states(stepper)
        path = self.folder / f"step-{stepper.step:08d}"
        if stepper.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = self.folder / f".{path.name}.{os.getpid()}"
            shutil.rmtree(beside, ignore_errors=True)  # left by a killed process that had our process id
            try:
                beside.mkdir()
                _save(stepper, state, training, beside)
                manifest = {"step": stepper.step, "score": score, "files": _files(beside)}
                (beside / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
                to_disk(beside)
                shutil.rmtree(path, ignore_errors=True)
                beside.rename(path)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            self.show(path)
            self._drop()
        return path

    def show(self, path: Path) -> None:
        """Make a checkpoint's model the one in the run's folder."""
        _link(path / MODEL, self.folder.parent / MODEL)

    def _drop(self) -> None:
        """Remove all but the last, the best and the periodic checkpoints, and leftovers of killed runs."""
        there = self.there()
        scored = [checkpoint for checkpoint in there if checkpoint.score is not None]
        kept = {checkpoint.path for checkpoint in there[-self._keep_last :]}
        kept |= {max(scored, key=lambda checkpoint: checkpoint.score or 0.0).path} if scored else set()
        if self._keep_every:
            kept |= {checkpoint.path for checkpoint in there if checkpoint.step % self._keep_every == 0}
        for path in [c.path for c in there if c.path not in kept] + list(self.folder.glob(".step-*")):
            shutil.rmtree(path, ignore_errors=True)


def restore(stepper: Stepper, path: Path) -> None:
    """Load the state of a checkpoint that passed ``verify`` into ``stepper``."""
    from safetensors.torch import load_file

    state: dict[str, Any] = {_PREFIX + name: tensor for name, tensor in load_file(path / MODEL).items()}
    if (path / HEAD).is_file():
        state |= load_file(path / HEAD)
    if stepper.averaged is not None:
        averages = path / AVERAGED  # a run that had none starts them from its weights
        stepper.averaged.module.load_state_dict(load_file(averages) if averages.is_file() else state)
    training = torch.load(path / TRAINING, map_location="cpu", weights_only=True)
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(stepper.module, state, options=whole)
    settings = [{k: v for k, v in group.items() if k != "params"} for group in stepper.optimizer.param_groups]
    set_optimizer_state_dict(stepper.module, stepper.optimizer, training["optimizer"], options=whole)
    for group, of_recipe in zip(stepper.optimizer.param_groups, settings, strict=True):
        group.update(of_recipe)
    if training["precision"]:  # empty if there was no loss scale
        stepper.fabric.strategy.precision.load_state_dict(training["precision"])
    stepper.step = json.loads((path / MANIFEST).read_text("utf-8"))["step"]


def verify(path: Path, config: Config) -> None:
    """Refuse a checkpoint whose files have changed since they were written, or whose model has another configuration.

    Raises ValueError, saying what is wrong, or FileNotFoundError if there is no such folder.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {path}")
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        int(manifest["step"])
        expected = manifest["files"]
        found = _files(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of a run, or is damaged: {reason(error)}") from error
    changed = sorted(name for name in {MODEL, TRAINING, *expected} if found.get(name) != expected.get(name))
    if changed:
        raise ValueError(f"{path} is damaged: {', '.join(changed)} has changed since it was written")
    try:
        with safe_open(path / MODEL, framework="pt") as opened:
            # Through Config, whose defaults for later fields are the behaviour before those existed.
            written = json.loads(opened.metadata()[CONFIG_KEY])
            theirs = Config.from_dict(written).to_dict()
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / MODEL} is not a model of this package: {reason(error)}") from error
    ours = Config.from_dict(config.to_dict()).to_dict()
    # A field missing from an older file is not a contradiction.
    told = [name for name, value in theirs.items() if name in written or value is not None]
    other = [f"{name} {theirs[name]}, here {ours[name]}" for name in told if theirs[name] != ours[name]]
    if other:
        raise ValueError(f"{path} belongs to another model: {'; '.join(other)}")


def _states(stepper: Stepper) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state: dict[str, Any] = get_model_state_dict(stepper.module, options=_WHOLE)
    optimizer = get_optimizer_state_dict(stepper.module, stepper.optimizer, options=_WHOLE)
    return state, {"optimizer": optimizer, "precision": stepper.fabric.strategy.precision.state_dict()}


def _save(stepper: Stepper, state: dict[str, Tensor], training: dict[str, Any], folder: Path) -> None:
    """Write the files; turn whatever the writers raise on a full disk into OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    model = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    head = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith(_PREFIX)}
    try:
        save_state(model, stepper.plan.config, folder / MODEL)
        if head:
            save_file(head, folder / HEAD, metadata=stepper.task.metadata)
        if stepper.averaged is not None:
            save_file(stepper.averaged.module.state_dict(), folder / AVERAGED)
        torch.save(training, folder / TRAINING)
    except (RuntimeError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written: {reason(error)}") from error


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of a checkpoint's files."""
    sums = {}
    optional = [name for name in (HEAD, AVERAGED) if (folder / name).is_file()]
    for name in (MODEL, TRAINING, *optional):
        checksum = size = 0
        with (folder / name).open("rb") as file:
            while part := file.read(1 << 24):
                checksum, size = zlib.crc32(part, checksum), size + len(part)
        sums[name] = [size, checksum]
    return sums


def _link(newest: Path, path: Path) -> None:
    """Make ``path`` the newest model: a hard link, or a copy if the file system has no links."""
    try:
        with replacing(path) as beside:
            try:
                os.link(newest, beside)
            except OSError:
                shutil.copyfile(newest, beside)
    except PermissionError as error:  # Windows cannot replace a file that is open
        raise OSError(f"{path} could not be replaced by the newest model, {newest}: {error.strerror}") from error
