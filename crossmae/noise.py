"""Draw uniform noise from a generator, even in compiled code."""

import ctypes

import torch
from torch import Tensor

from crossmae_kernels.runtime.device import constant_when_compiled

# Generators that compiled graphs refer to by id. They are kept alive, so that no other object can get that id.
_generators: dict[int, torch.Generator] = {}

_library = torch.library.Library("crossmae", "FRAGMENT")
_library.define(
    "uniform(SymInt[] shape, int generator, Device device) -> Tensor", tags=[torch.Tag.nondeterministic_seeded]
)


def uniform(
    shape: tuple[int, ...], generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Float32 noise in [0, 1) on ``device``, by default the generator's.

    PyTorch's compiler cannot put a generator into a graph. The graph holds its id instead, is recompiled for another
    generator, and calls an operator that draws from the generator with that id.

    Raises:
        ValueError: when exporting with a generator, since an exported program outlives it.
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
    """The id of a generator, which is alive while code that has it as argument is compiled."""
    # Checked here, where the answer is right: PyTorch 2.11 traces it as True whatever is compiled.
    if torch.compiler.is_exporting():
        raise ValueError("a generator cannot be exported; pass noise, or leave the generator out")
    _generators[identity] = ctypes.cast(identity, ctypes.py_object).value
    return identity


def _uniform(shape: list[int], generator: int, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=_generators[generator], device=device)


def _uniform_fake(shape: list[int], generator: int, device: torch.device) -> Tensor:
    return torch.empty(shape, device=device)


# No argument is a tensor, so no device selects the implementation.
_library.impl("uniform", _uniform, "BackendSelect")
torch.library.register_fake("crossmae::uniform", _uniform_fake, lib=_library)
