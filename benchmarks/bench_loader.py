"""How many images per second the data loader alone makes ready: JPEGs of 500 x 375, random crops of 224.

``python -m pytest benchmarks/bench_loader.py``; images per second are ``BATCH`` times the column OPS, and stand in each
record's extra info.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.jpegs import jpegs
from crossmae.training.data.batches import Batch, loader
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.data.sampling import GlobalBatches

IMAGES, BATCH, ROUNDS = 128, 64, 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Generated pictures."""
    return jpegs(tmp_path_factory.mktemp("jpegs"), IMAGES)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader(benchmark: Any, dataset: ImageDataset, workers: int) -> None:
    """Zero workers make batches in the calling process, one by one."""
    torch.set_num_threads(1)
    batches: Iterator[Batch] = iter(loader(dataset, GlobalBatches(len(dataset), BATCH), workers))
    # What workers made ready before the clock started is not counted: two batches each.
    batch = benchmark.pedantic(next, args=(batches,), rounds=ROUNDS, warmup_rounds=1 + 2 * workers)
    assert batch.images.shape == (BATCH, 3, 224, 224)
    assert batch.unreadable == ()
    benchmark.extra_info["images per second"] = BATCH / benchmark.stats["mean"]
    benchmark.extra_info["KB per image"] = _mean_size(dataset) / 1000
    benchmark.extra_info["torch"] = torch.__version__


def _mean_size(dataset: ImageDataset) -> float:
    source = dataset.images.source
    return float(np.mean([path.stat().st_size for path in source.folder.iterdir()]))  # type: ignore[attr-defined]
