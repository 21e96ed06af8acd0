"""What the training loop costs beside its model: per step, and fed by the loader.

``python -m pytest benchmarks/bench_loop.py``. In place of the model stands one parameter, so what is timed is the order
of images, the optimizer and its learning rate, reading the loss back, the log, TensorBoard and the progress line.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from benchmarks.jpegs import jpegs
from crossmae.model.config import Config
from crossmae.training import run as run_module
from crossmae.training.data.batches import Batch
from crossmae.training.data.config import DataConfig
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.monitor import LOG, read_log
from crossmae.training.plan import make_plan
from crossmae.training.recipe import Recipe, RunOptions
from crossmae.training.run import Run

IMAGES, BATCH = 128, 64
STEPS, ROUNDS = 200, 5


class OneParameter(nn.Module):
    """A stand-in for a model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, mask_ratio: float, prediction_ratio: float, noise: Tensor) -> Any:
        """Its loss."""
        return type("Output", (), {"loss": self.weight.square().sum()})


def training(folder: Path, images: ImageDataset, steps: int, workers: int) -> Run:
    """A run of the stand-in that saves and evaluates nothing on its way."""
    data = DataConfig(source="-", workers=workers, mean=(0.5,) * 3, std=(0.25,) * 3)
    recipe = Recipe(data=data, batch_size=BATCH, steps=steps, precision="float32")
    never = 100.0 * steps
    options = RunOptions(out=str(folder), save_every=never, probe_every=never, pictures_every=never)
    return Run(make_plan(recipe, len(images), 1), options, folder, images, Fabric(accelerator="cpu", devices=1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Generated pictures."""
    return jpegs(tmp_path_factory.mktemp("jpegs"), IMAGES)


def closed(run: Run) -> None:
    """End a run's log and line."""
    assert run._monitor is not None
    run._monitor.close()


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "MaskedAutoencoder", OneParameter)
    monkeypatch.setattr(Run, "_draw", lambda run: None)
    monkeypatch.setattr(run_module, "describe", lambda plan: "")


def test_step_of_the_loop(
    benchmark: Any,
    dataset: ImageDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batches are there at once; the goal is below 2 ms a step."""
    ready = Batch(torch.zeros(1, 3, 224, 224, dtype=torch.uint8), torch.zeros(1, 196), torch.zeros(1), ())
    monkeypatch.setattr(Run, "_batches", lambda run: itertools.repeat(ready))
    folders = (tmp_path / str(number) for number in itertools.count())

    def setup() -> tuple[tuple[Run], dict[str, Any]]:
        folder = next(folders)
        folder.mkdir()
        run = training(folder, dataset, STEPS, workers=0)
        run._begin()
        return (run,), {}

    benchmark.pedantic(Run._train, setup=setup, teardown=closed, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["milliseconds per step"] = 1000 * benchmark.stats["median"] / STEPS


@pytest.mark.parametrize("workers", [1, 2])
def test_loop_and_loader(benchmark: Any, dataset: ImageDataset, tmp_path: Path, workers: int) -> None:
    """The rate should be the loader's own: what the loop adds happens while workers read.

    The rate is the loop's own of its last steps, when workers have long been at work.
    """
    torch.set_num_threads(1)
    run = training(tmp_path, dataset, 3 * RunOptions().log_every, workers)
    run._begin()
    benchmark.pedantic(Run._train, args=(run,), teardown=closed, rounds=1)
    rates = [entry["images_per_second"] for entry in read_log(tmp_path / LOG) if "images_per_second" in entry]
    benchmark.extra_info["images per second"] = rates[-1]
