"""The training loop of a run, for any task, including how it handles failures."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from lightning_fabric import Fabric

from crossmae.files import make_folder, replacing
from crossmae.training.data.batches import AnyBatch, loader
from crossmae.training.data.sampling import GlobalBatches
from crossmae.training.losses import Losses, LossReader
from crossmae.training.monitor import Monitor
from crossmae.training.nonfinite import NonFiniteLossError, find_nonfinite
from crossmae.training.preemption import Preemption
from crossmae.training.recipe import RECIPE, Options, TrainingRecipe, changes
from crossmae.training.run_state import Checkpoints, restore, verify
from crossmae.training.step import Stepper
from crossmae.training.task import Task, TrainedModule
from crossmae_kernels.command import reason


def check_folder(folder: Path, recipe: TrainingRecipe, options: Options) -> None:
    """Refuse a folder that is not writable, or that holds a run these settings must not resume."""
    make_folder(folder)
    there = sorted((folder / "checkpoints").glob("step-*"))
    if there and options.resume == "never":
        raise ValueError(f"{folder} holds checkpoints of a run; use another folder, or resume=auto to continue it")
    if Path(options.resume).resolve().parent == (folder / "checkpoints").resolve():
        raise ValueError(
            f"{options.resume} is a checkpoint of this run, which continues from its newest one; "
            "remove the later ones and use resume=auto"
        )
    refused, _ = changes(recipe, folder / RECIPE) if there else ([], [])
    if refused:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(refused)}; "
            f"to start from it, use another folder with resume={there[-1]}"
        )


class Run:
    """A run of a task in one process, on its device, from the checkpoint it resumes from to its last step.

    ``stopped_by`` is the signal that ended it early, or None.
    """

    stopped_by: int | None = None

    def __init__(self, task: Task, options: Options, folder: Path, fabric: Fabric) -> None:
        self._task, self._options, self._folder, self._fabric = task, options, folder, fabric
        self._plan = plan = task.plan
        keep_every = None if options.keep_every is None else plan.interval(options.keep_every)
        self._checkpoints = Checkpoints(folder / "checkpoints", options.keep_last, keep_every)
        torch.manual_seed(plan.recipe.seed)
        self._stepper = Stepper(task, fabric)
        self._monitor: Monitor | None = None
        self._unreadable: set[str] = set()
        self._recent: list[float] = []
        self._evaluated: float | None = None

    def fit(self) -> TrainedModule:
        """Train from the folder's newest checkpoint to the last step, or until a signal to stop."""
        try:
            self._begin()
            self._train()
        except NonFiniteLossError as error:
            raise RuntimeError(self._explained(error)) from None
        finally:
            if self._monitor is not None:
                self._monitor.close()
        return self._stepper.module

    def _begin(self) -> None:
        chosen = self._fabric.broadcast(self._newest_good() if self._fabric.is_global_zero else None)
        if chosen is not None:
            restore(self._stepper, chosen)
        if self._fabric.is_global_zero:
            self._monitor = Monitor(self._folder, self._plan, self._stepper.step, self._task.name)
            self._monitor.say(self._task.describe() if chosen is None else self._going_on(chosen))
            if chosen is not None and chosen.parent == self._checkpoints.folder:
                self._checkpoints.show(chosen)  # a killed run may have written it without this
            with replacing(self._folder / RECIPE) as beside:
                beside.write_text(self._plan.recipe.to_json(), "utf-8")
        if chosen is None:
            self._save(None)  # a point to search for a NaN from; and a full disk shows at once

    def _going_on(self, chosen: Path) -> str:
        refused, changed = changes(self._plan.recipe, chosen.parent.parent / RECIPE)
        return "; ".join([f"Resuming from {chosen}", *refused, *changed]) + "."

    def _train(self) -> None:
        plan, stepper, options = self._plan, self._stepper, self._options
        reader = LossReader(self._fabric, options.log_every)
        batches = self._batches()
        intervals = (options.save_every, self._task.evaluate_every, options.pictures_every)
        save, evaluate, pictures = map(plan.interval, intervals)
        with Preemption(self._fabric) as preemption:
            stopping = False
            while stepper.step < plan.steps and not stopping:
                self._note(reader.add(stepper.step, stepper.train_step(batches)))
                step = stepper.step
                stopping = preemption.should_stop(step % options.log_every == 0)
                last = step == plan.steps
                evaluating = self._task.evaluates and (step % evaluate == 0 or last)
                saving = step % save == 0 or last or stopping or evaluating
                if saving:
                    for losses in reader.flush():
                        self._note(losses)
                if evaluating:
                    self._evaluate()
                if saving:
                    self._save(self._score(evaluating))
                if step % pictures == 0 or last:
                    self._draw()
                if stopping and not last:
                    self.stopped_by = preemption.signal
        if self._monitor is not None and self.stopped_by is not None:
            self._monitor.say(f"Stopped after step {stepper.step:,}, as requested; resume=auto continues from there.")

    def _batches(self) -> Iterator[AnyBatch]:
        """This device's batches from the next step on."""
        plan, data = self._plan, self._plan.recipe.data
        order = GlobalBatches(
            plan.images,
            plan.recipe.batch_size,
            seed=plan.recipe.seed,
            start_step=self._stepper.step,
            rank=self._fabric.global_rank,
            world=self._fabric.world_size,
            accumulation=plan.accumulation,
        )
        for batch in loader(self._task.images, order, data.workers, self._fabric.device, self._task.collate):
            self._report(batch.unreadable)
            yield batch

    def _report(self, unreadable: tuple[str, ...]) -> None:
        """Log the names of unreadable images, each once."""
        new = [name for name in dict.fromkeys(unreadable) if name not in self._unreadable]
        if not new:
            return
        self._unreadable.update(new)
        rank = f"-{self._fabric.global_rank}" if self._fabric.world_size > 1 else ""
        with (self._folder / f"unreadable{rank}.txt").open("a", encoding="utf-8") as log:
            log.writelines(f"{name}\n" for name in new)
        if self._monitor is not None:
            self._monitor.say(f"{len(self._unreadable):,} images could not be read so far; the last: {new[-1]}")

    def _note(self, losses: Losses | None) -> None:
        if losses is None:
            return
        bad = losses.first_bad_step()
        if bad is not None:
            raise NonFiniteLossError(bad)
        self._recent += losses.values
        if self._monitor is not None:
            self._monitor.losses(losses)

    def _score(self, evaluated: bool) -> float | None:
        """The score that selects the best checkpoint: the task's evaluation, or else the loss since the last one."""
        recent, self._recent = self._recent, []
        if self._task.evaluates:
            return self._evaluated if evaluated else None
        return -sum(recent) / len(recent) if recent else None

    def _save(self, score: float | None) -> None:
        """Write a checkpoint; if the disk is full or gone, warn and continue training."""
        if not self._stepper.is_finite():
            raise NonFiniteLossError(self._stepper.step)
        try:
            self._checkpoints.write(self._stepper, score)
        except OSError as error:
            if self._stepper.step in (0, self._plan.steps):
                raise
            warnings.warn(
                f"no checkpoint written at step {self._stepper.step}: {reason(error)}; the previous one is kept",
                stacklevel=2,
            )

    def _evaluate(self) -> None:
        with self._pause(), self._fabric.autocast():
            found = self._task.evaluate(self._stepper)
        self._report(tuple(self._task.unreadable))
        if self._monitor is not None and found is not None:
            self._evaluated = found[self._task.score]
            self._monitor.evaluation(self._stepper.step, found)

    def _draw(self) -> None:
        try:
            with self._pause():
                for picture in self._task.draw(self._stepper, self._folder / "pictures"):
                    assert self._monitor is not None  # only the first device draws
                    self._monitor.picture(self._stepper.step, picture)
        except OSError as error:
            warnings.warn(f"no pictures drawn at step {self._stepper.step}: {reason(error)}", stacklevel=2)

    def _pause(self) -> AbstractContextManager[None]:
        return nullcontext() if self._monitor is None else self._monitor.pause()

    def _newest_good(self) -> Path | None:
        """The checkpoint to resume from, or None; skips damaged ones and those of other models."""
        refused = []
        for checkpoint in reversed(self._checkpoints.there()):
            try:
                verify(checkpoint.path, self._plan.config)
            except ValueError as error:
                refused.append(str(error))
            else:
                for why in refused:
                    warnings.warn(f"not resuming from this checkpoint: {why}", stacklevel=2)
                return checkpoint.path
        if refused:
            raise RuntimeError(f"cannot resume from any checkpoint in {self._folder}; the newest: {refused[0]}")
        if self._options.resume in ("auto", "never"):
            return None
        verify(Path(self._options.resume), self._plan.config)
        return Path(self._options.resume)

    def _explained(self, error: NonFiniteLossError) -> str:
        """What went wrong first, found by repeating the steps since the last checkpoint, which is not changed."""
        newest: Path | None = self._fabric.broadcast(self._newest_good() if self._fabric.is_global_zero else None)
        assert newest is not None  # a run that started without one has written its own
        restore(self._stepper, newest)
        if self._monitor is not None:
            self._monitor.say(
                f"The loss of step {error.step} is not finite; repeating the steps from {newest} to see why."
            )
        why = find_nonfinite(self._stepper, self._batches(), error.step)
        return f"{error}: {why}; the last good checkpoint is {newest}"
