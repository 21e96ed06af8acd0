"""Random numbers as pure functions of their purpose, independent of workers, ranks and earlier draws."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_ORDER, _SAMPLE = 0, 1  # streams that must not meet


def order(seed: int, epoch: int) -> np.random.Generator:
    """For the order of the images in an epoch."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ORDER, epoch)))


def of_sample(seed: int, epoch: int, index: int) -> np.random.Generator:
    """For everything random in one image of one epoch."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SAMPLE, epoch, index)))


@contextmanager
def others_seeded() -> Iterator[None]:
    """Within the context the generators of Python and NumPy start from a seed that PyTorch's CPU generator draws.

    For libraries that draw from these; afterwards their states are what they were before.
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
    """Within the context PyTorch's CPU generator starts from ``seed``; afterwards its state is what it was before.

    For transforms that take no generator. ``torch.manual_seed`` would touch the accelerators' generators too.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
