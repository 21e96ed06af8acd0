"""Samples and batches: readable whatever the folder holds, and the same for any workers and processes."""

import os
import signal
from itertools import islice

import numpy as np
import pytest
import torch
from pictures import BROKEN, encoded, messy_folder, random_pixels

from crossmae.training.data.batches import Batch, loader
from crossmae.training.data.config import DataConfig
from crossmae.training.data.decoding import UnreadableImage
from crossmae.training.data.factory import open_images
from crossmae.training.data.sampling import GlobalBatches


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    return messy_folder(tmp_path_factory.mktemp("messy"))


def opened(folder, seed=3, strict=False, **options):
    return open_images(DataConfig(str(folder), **options), 3, (32, 48), mask_noise=24, seed=seed, strict=strict)


def equal(a, b):
    tensors = [(getattr(a, name), getattr(b, name)) for name in ("images", "noise", "labels")]
    return all(torch.equal(x, y) for x, y in tensors) and a.unreadable == b.unreadable


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_messy_folder_loads_alike_with_and_without_workers(messy, dtype):
    dataset = opened(messy, dtype=dtype)
    assert len(dataset) == 60 + 13 + len(BROKEN)
    steps = 22  # an epoch of 20 and a little
    alone, shared = (
        list(islice(loader(dataset, GlobalBatches(len(dataset), 4, seed=1), workers), steps)) for workers in (0, 2)
    )
    assert all(equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert {(batch.images.shape, batch.images.dtype) for batch in alone} == {((4, 3, 32, 48), getattr(torch, dtype))}
    assert {(batch.noise.shape, batch.noise.dtype) for batch in alone} == {((4, 24), torch.float32)}
    assert all((batch.noise >= 0).all() and (batch.noise < 1).all() for batch in alone)
    assert all((batch.labels == -1).all() for batch in alone)


def test_what_is_unreadable_is_named_once_with_its_reason(messy):
    dataset = opened(messy)
    messages = {message for index in range(len(dataset)) for message in dataset[0, index].unreadable}
    named = {message.partition(" cannot be read: ")[0] for message in messages}
    assert named == {str(messy / name) for name in BROKEN}
    assert len(messages) == len(BROKEN)
    assert f"{messy / 'zero.jpg'} cannot be read: the file is empty" in messages
    assert messages == {message for index in range(len(dataset)) for message in dataset[7, index].unreadable}


def test_the_next_readable_image_takes_the_place(messy):
    dataset = opened(messy, crop_scale=None, flip=False)
    names = list(dataset.images.source.names)
    assert names[-1] == "zero.jpg"  # after which the first comes
    last, first = dataset[0, len(dataset) - 1], dataset[0, 0]
    assert torch.equal(last.image, first.image)
    assert not torch.equal(last.noise, first.noise)
    assert len(last.unreadable) == 1


def test_strict_refuses(messy):
    with pytest.raises(UnreadableImage, match="cannot be read"):  # before any work
        opened(messy, strict=True)
    known = {"dtype": "float32", "numbers": "shares", "mean": (0.5,) * 3, "std": (0.2,) * 3}
    dataset = opened(messy, strict=True, **known)
    index = list(dataset.images.source.names).index("five.tif")
    with pytest.raises(UnreadableImage, match=r"five.tif cannot be read: its number of channels is 5, but 3"):
        dataset[0, index]
    with pytest.raises(UnreadableImage, match="cannot be read"):  # the same error through a worker
        list(islice(loader(dataset, GlobalBatches(len(dataset), 41), workers=1), 2))


def test_where_nothing_is_readable_it_ends_before_any_work(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"3 images in a row cannot be read; the first: .*a.png cannot be read"):
        opened(tmp_path)
    for name in "bc":
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(UnreadableImage, match=r"the only image cannot be read: .*a.png cannot be read"):
        opened(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for number in range(30):
        (folder / f"{number:02}").mkdir()
        (folder / f"{number:02}" / "it.png").write_bytes(encoded(random_pixels(number, 20, 30, 3), "PNG"))
    return folder


def test_samples_depend_on_seed_epoch_and_index_alone(plain):
    dataset = opened(plain)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = dataset[2, 5]
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are used up
    torch.rand(9)
    again = opened(plain)[2, 5]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.noise, again.noise)
    for other in (dataset[3, 5], opened(plain, seed=4)[2, 5]):
        assert not torch.equal(first.image, other.image)
        assert not torch.equal(first.noise, other.noise)
        assert first.label == other.label == 5


def test_noise_is_uniform_and_independent():
    dataset = open_images(DataConfig("digits"), 1, (8, 8), mask_noise=50)
    noise = np.stack([dataset[epoch, index].noise.numpy() for epoch in range(8) for index in range(50)])
    assert noise.mean() == pytest.approx(0.5, abs=5 * (1 / 12 / noise.size) ** 0.5)
    assert noise.var() == pytest.approx(1 / 12, abs=5 * (1 / 180 / noise.size) ** 0.5)
    centred = noise - 0.5
    off = np.abs(centred @ centred.T * 12 / 50 - np.eye(400)).max()
    assert off < 5.5 / 50**0.5  # of 80,000 pairs, each of deviation 1 / sqrt(50)


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (2, 2), (4, 0)])
def test_processes_together_see_what_one_sees(plain, world, workers):
    dataset = opened(plain)
    whole = list(islice(loader(dataset, GlobalBatches(30, 8, seed=1), 0), 5))
    parts = [
        islice(loader(dataset, GlobalBatches(30, 8, 1, rank, world, accumulation=2), workers), 10)
        for rank in range(world)
    ]
    micro = [list(part) for part in parts]
    for step, batch in enumerate(whole):
        joined = [m for part in micro for m in part[2 * step : 2 * step + 2]]
        for name in ("images", "noise", "labels"):
            assert torch.equal(torch.cat([getattr(m, name) for m in joined]), getattr(batch, name))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_after_resuming_are_those_of_an_uninterrupted_run(plain, workers):
    dataset = opened(plain)
    whole = list(islice(loader(dataset, GlobalBatches(30, 8, seed=1), 0), 7))
    for start in (2, 3, 5):
        rest = list(islice(loader(dataset, GlobalBatches(30, 8, seed=1, start_step=start), workers), 7 - start))
        assert all(equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_workers_leave_signals_to_their_parent(plain):
    """Neither Ctrl-C nor a scheduler's SIGTERM, which reach every process, takes away the batches of a step."""
    batches = iter(loader(opened(plain), GlobalBatches(30, 8), 2))
    next(batches)
    stranger = os.fork()  # a signal from the workers' parent would end them
    if stranger == 0:
        for worker in batches._workers:
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        os._exit(0)
    os.waitpid(stranger, 0)
    assert len(list(islice(batches, 12))) == 12
    workers = batches._workers
    workers[0].terminate()
    workers[0].join(20)
    assert workers[0].exitcode == 0


def test_a_batch_moves_as_a_whole():
    batch = Batch(torch.ones(2, 1, 4, 4, dtype=torch.uint8), torch.rand(2, 4), torch.tensor([1, 2]), ("x",))
    moved = batch.to("meta")
    assert {moved.images.device.type, moved.noise.device.type, moved.labels.device.type} == {"meta"}
    assert moved.unreadable == ("x",)
    assert moved.images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale must be a range within \(0, 1\], got \(0.0, 1.0\)"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale must be a range"),
        ({"dtype": "float16"}, "dtype must be 'auto', 'uint8' or 'float32', got 'float16'"),
        ({"numbers": "bytes"}, "numbers must be 'shares' or 'values', got 'bytes'"),
        ({"nodata": "none"}, "nodata must be a finite number or 'nan', got 'none'"),
        ({"nodata": float("inf")}, "nodata must be a finite number or 'nan', got inf"),
        ({"dtype": "uint8", "nodata": 0}, "dtype='uint8' can only hold shares of 255"),
        ({"dtype": "uint8", "numbers": "values"}, "dtype='uint8' can only hold shares of 255"),
        ({"mean": (0.5,)}, "mean and std must be given together"),
        ({"mean": (float("nan"),) * 3, "std": (1.0,) * 3}, "mean must be finite"),
        ({"mean": (0.5,), "std": (1.0, 1.0)}, "mean and std must be given together"),
        ({"mean": (0.5,), "std": (0.0,)}, "std must be positive"),
        ({"mean": (0.5,), "std": (1.0,)}, "one value for each of 3 channels"),
        ({"workers": -1}, "workers must not be negative, got -1"),
    ],
)
def test_wrong_options_are_refused(options, message, plain):
    with pytest.raises(ValueError, match=message):
        opened(plain, **options)
