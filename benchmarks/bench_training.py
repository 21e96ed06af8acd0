"""What a training run costs beside its model: images per second of the data loader, and the loop's own time for a step.

Images are JPEGs of 500 x 375, cropped at random to 224. A single parameter stands in for the model, so what is timed of
the loop is the order of images, the optimizer and its learning rate, reading the loss back, the log, TensorBoard and
the progress line.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import nn

from crossmae.model.config import Config
from crossmae.training import pretraining
from crossmae.training.data.batches import Batch, loader
from crossmae.training.data.config import DataConfig
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.data.factory import open_images
from crossmae.training.data.sampling import GlobalBatches
from crossmae.training.loop import Run
from crossmae.training.monitor import LOG, read_log
from crossmae.training.plan import make_plan
from crossmae.training.pretraining import Pretraining
from crossmae.training.recipe import Recipe, RunOptions

IMAGES, BATCH = 128, 64
LOADED = 40  # batches
STEPS, ROUNDS = 200, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated pictures, whose files are about as large as ImageNet's."""
    folder, rng = tmp_path_factory.mktemp("jpegs"), np.random.default_rng(0)
    for number in range(IMAGES):
        blobs = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
        blobs.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg", quality=92)
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> ImageDataset:
    """Random crops of them."""
    return open_images(DataConfig(str(folder)), channels=3, image_size=(224, 224), mask_noise=196)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader(benchmark: Any, dataset: ImageDataset, folder: Path, workers: int) -> None:
    """Zero workers make batches in the calling process, one by one."""
    torch.set_num_threads(1)
    batches: Iterator[Batch] = iter(loader(dataset, GlobalBatches(len(dataset), BATCH), workers))
    # What workers made ready before the clock started is not counted: two batches each.
    batch = benchmark.pedantic(next, args=(batches,), rounds=LOADED, warmup_rounds=1 + 2 * workers)
    assert batch.images.shape == (BATCH, 3, 224, 224)
    assert batch.unreadable == ()
    benchmark.extra_info["images per second"] = BATCH / benchmark.stats["mean"]
    benchmark.extra_info["KB per image"] = sum(path.stat().st_size for path in folder.iterdir()) / IMAGES / 1000
    benchmark.extra_info["torch"] = torch.__version__


class OneParameter(nn.Module):
    """A stand-in for a model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *arguments: Any, **others: Any) -> Any:
        """Its loss, whatever the input."""
        return type("Output", (), {"loss": self.weight.square().sum()})


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs train it and draw nothing."""
    monkeypatch.setattr(pretraining, "MaskedAutoencoder", OneParameter)
    monkeypatch.setattr(Run, "_draw", lambda run: None)
    monkeypatch.setattr(pretraining, "describe", lambda plan: "")


def begun(folder: Path, images: ImageDataset, steps: int, workers: int) -> Run:
    """A run of the stand-in that saves and evaluates nothing on its way."""
    folder.mkdir(exist_ok=True)
    data = DataConfig(source="-", workers=workers, mean=(0.5,) * 3, std=(0.25,) * 3)
    recipe = Recipe(data=data, batch_size=BATCH, steps=steps, precision="float32")
    never = 100.0 * steps
    options = RunOptions(out=str(folder), save_every=never, probe_every=never, pictures_every=never)
    task = Pretraining(make_plan(recipe, len(images), 1), images, options)
    run = Run(task, options, folder, Fabric(accelerator="cpu", devices=1))
    run._begin()
    return run


def closed(run: Run) -> None:
    """End a run's log and line."""
    assert run._monitor is not None
    run._monitor.close()


@pytest.mark.usefixtures("stand_in")
def test_step_of_the_loop(
    benchmark: Any, dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are there at once; the goal is below 2 ms a step."""
    ready = Batch(torch.zeros(1, 3, 224, 224, dtype=torch.uint8), torch.zeros(1, 196), torch.zeros(1), ())
    monkeypatch.setattr(Run, "_batches", lambda run: itertools.repeat(ready))
    numbers = itertools.count()

    def setup() -> tuple[tuple[Run], dict[str, Any]]:
        return (begun(tmp_path / str(next(numbers)), dataset, STEPS, workers=0),), {}

    benchmark.pedantic(Run._train, setup=setup, teardown=closed, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["milliseconds per step"] = 1000 * benchmark.stats["median"] / STEPS


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("workers", [1, 2])
def test_loop_and_loader(benchmark: Any, dataset: ImageDataset, tmp_path: Path, workers: int) -> None:
    """The rate should be the loader's own: what the loop adds happens while workers read.

    The rate is the loop's own of its last steps, when workers have long been at work.
    """
    torch.set_num_threads(1)
    run = begun(tmp_path, dataset, 3 * RunOptions().log_every, workers)
    benchmark.pedantic(Run._train, args=(run,), teardown=closed, rounds=1)
    rates = [entry["images_per_second"] for entry in read_log(tmp_path / LOG) if "images_per_second" in entry]
    benchmark.extra_info["images per second"] = rates[-1]
