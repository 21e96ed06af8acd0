"""Random numbers as pure functions of their purpose, independent of workers, ranks and earlier draws."""

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
