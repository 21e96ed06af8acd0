"""Uniform noise, drawn from a generator in compiled code too."""

import ctypes

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import constant_when_compiled

# Generators that compiled graphs name by their id. They stay, so that no other object can come to have that id.
_generators: dict[int, torch.Generator] = {}

_library = torch.library.Library("crossmae", "FRAGMENT")
_library.define(
    "uniform(SymInt[] shape, int generator, Device device) -> Tensor", tags=[torch.Tag.nondeterministic_seeded]
)


def uniform(
    shape: tuple[int, ...], generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Float32 noise in [0, 1) on ``device``, or where the generator lives.

    PyTorch's compiler cannot take a generator into a graph. It takes its id, and compiles again for another generator;
    an operator draws from the generator of that id.

    Raises:
        ValueError: if a generator is to be exported, since an exported program outlives it.
    """
    if generator is None:
        return torch.rand(shape, device=device)
    if device is None:
        device = generator.device
    if not torch.compiler.is_compiling():
        return torch.rand(shape, generator=generator, device=device)
    return torch.ops.crossmae.uniform(shape, _held(id(generator)), torch.device(device))


@constant_when_compiled
def _held(identity: int) -> int:
    """The id of a generator, which is alive while it is an argument of what is being compiled."""
    # Asked here, where the answer is true: PyTorch 2.11 traces it as True whatever is compiled.
    if torch.compiler.is_exporting():
        raise ValueError("a generator cannot be exported; pass noise, or leave the generator out")
    _generators[identity] = ctypes.cast(identity, ctypes.py_object).value
    return identity


def _uniform(shape: list[int], generator: int, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=_generators[generator], device=device)


def _uniform_fake(shape: list[int], generator: int, device: torch.device) -> Tensor:
    return torch.empty(shape, device=device)


# No argument is a tensor whose device would choose the implementation.
_library.impl("uniform", _uniform, "BackendSelect")
torch.library.register_fake("crossmae::uniform", _uniform_fake, lib=_library)
