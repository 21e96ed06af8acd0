"""Random numbers as pure functions of what they are for, independent of workers, ranks and earlier draws."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_ORDER, _SAMPLE = 0, 1  # independent streams


def order(seed: int, epoch: int) -> np.random.Generator:
    """For the order of the images in an epoch."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ORDER, epoch)))


def of_sample(seed: int, epoch: int, index: int) -> np.random.Generator:
    """For all randomness of one image in one epoch."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SAMPLE, epoch, index)))


@contextmanager
def others_seeded() -> Iterator[None]:
    """Within the context, Python's and NumPy's generators are seeded from PyTorch's CPU generator.

    For libraries that draw from them; their states are restored afterwards.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = int(torch.randint(2**32, ()))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Within the context, PyTorch's CPU generator is seeded with ``seed``; its state is restored afterwards.

    For transforms that take no generator. ``torch.manual_seed`` would seed the accelerators' generators too.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
