"""A call of an op that can be run in any dtype, and random arguments for it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import crossmae_kernels
from crossmae_kernels.runtime.device import KERNEL_DTYPES
from crossmae_kernels.runtime.dispatch import form_of

# The types of an op's arguments.
Argument = Tensor | Sequence[Tensor] | None


def named(arguments: Mapping[str, Argument | Sequence[Tensor | None]]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is not None, by name; those of a sequence as ``maps[0]`` and so on."""
    for name, argument in arguments.items():
        if isinstance(argument, Tensor):
            yield name, argument
        elif argument is not None:
            yield from ((f"{name}[{index}]", t) for index, t in enumerate(argument) if t is not None)


def mapped(arguments: Mapping[str, Argument], function: Callable[[str, Tensor], Tensor]) -> dict[str, Argument]:
    """The arguments with each tensor replaced by ``function`` of its name and itself."""

    def of(name: str, argument: Argument) -> Argument:
        if argument is None or isinstance(argument, Tensor):
            return None if argument is None else function(name, argument)
        return [function(f"{name}[{index}]", tensor) for index, tensor in enumerate(argument)]

    return {name: of(name, argument) for name, argument in arguments.items()}


@dataclass(frozen=True)
class Problem:
    """One call of one op.

    Attributes:
        op: its name in ``crossmae_kernels``.
        label: distinguishes the problem from others of the op, except for the batch.
        arguments: tensors by the op's names. Those in float64 are converted to the dtype under test; ids, pixels and
            statistics are not.
        options: the op's other arguments.
        constants: names of float64 tensors without gradient.
        forms: the form requested of each operator's kernels; a rule chooses the others.
        dtypes: those in which the kernels support the problem.
    """

    op: str
    label: str
    arguments: dict[str, Argument]
    options: dict[str, Any] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    forms: dict[str, str] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = KERNEL_DTYPES

    def __str__(self) -> str:
        return f"{self.op}, {self.label}"

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return next(tensor.device for _, tensor in named(self.arguments))

    @property
    def differentiable(self) -> list[str]:
        """Names of all tensors with a gradient."""
        return [name for name, t in named(self.arguments) if t.dtype == torch.float64 and name not in self.constants]

    def by(self, impl: str = "auto") -> Callable[..., Any]:
        """The op with its options, to be called with its arguments by name."""
        return partial(getattr(crossmae_kernels, self.op), **self.options, impl=impl)

    def leaves(self, dtype: torch.dtype, frozen: Collection[str] = ()) -> dict[str, Any]:
        """New arguments in ``dtype``, requiring gradients except for those in ``frozen``."""
        trained = set(self.differentiable) - set(frozen)

        def leaf(name: str, tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64:
                return tensor
            return tensor.detach().to(dtype, copy=True).requires_grad_(name in trained)

        return mapped(self.arguments, leaf)

    def rounded(self, dtype: torch.dtype) -> "Problem":
        """The same problem with arguments rounded to ``dtype``, in float64."""

        def rounded(_: str, tensor: Tensor) -> Tensor:
            return tensor.to(dtype).double() if tensor.dtype == torch.float64 else tensor

        return replace(self, arguments=mapped(self.arguments, rounded))

    def having(self, **arguments: Argument) -> "Problem":
        """The same problem with some arguments replaced."""
        return replace(self, arguments=self.arguments | arguments)

    @contextmanager
    def in_form(self) -> Iterator[None]:
        """Request its forms within the block."""
        with ExitStack() as stack:
            for operator, form in self.forms.items():
                stack.enter_context(form_of(operator, form))
            yield


class Draw:
    """Draws random arguments on a device from a seed."""

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed numbers."""
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=self.dtype).mul_(scale)

    def uniform(self, *shape: int) -> Tensor:
        """float32 from 0.5 to 1.5, like pixel statistics."""
        return torch.rand(shape, generator=self._generator, device=self.device) + 0.5

    def bytes(self, *shape: int) -> Tensor:
        """uint8 from 0 to 255."""
        return torch.randint(256, shape, generator=self._generator, device=self.device, dtype=torch.uint8)

    def ids(self, batch: int, count: int, rows: int) -> Tensor:
        """int64 ``(batch, count)`` below ``rows``, in any order; in an image none repeats before all have occurred."""
        rounds = -(-count // rows)
        noise = torch.rand(batch, rounds, rows, generator=self._generator, device=self.device)
        return noise.argsort(-1).flatten(1)[:, :count].contiguous()
