"""A call of an op that can be solved in any dtype, and random arguments to pose it with."""

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

# What an op's argument may be.
Argument = Tensor | Sequence[Tensor] | None


def named(arguments: Mapping[str, Argument | Sequence[Tensor | None]]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is not None by name, those of a sequence as ``maps[0]`` and so on."""
    for name, argument in arguments.items():
        if isinstance(argument, Tensor):
            yield name, argument
        elif argument is not None:
            yield from ((f"{name}[{index}]", t) for index, t in enumerate(argument) if t is not None)


def mapped(arguments: Mapping[str, Argument], function: Callable[[str, Tensor], Tensor]) -> dict[str, Argument]:
    """The same with ``function`` of each tensor's name and the tensor in its place."""

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
        label: what tells the problem from others of the op, but for the batch.
        arguments: tensors by the names that the op has for them. Those in float64 are taken in the dtype under test;
            ids, pixels and statistics stay what they are.
        options: the op's other arguments.
        constants: names of tensors in float64 that want no gradient.
        forms: which form of its kernels each operator is asked for; a rule chooses where there is none.
        dtypes: in which the kernels serve the problem.
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
        """Where its tensors lie."""
        return next(tensor.device for _, tensor in named(self.arguments))

    @property
    def differentiable(self) -> list[str]:
        """Names of all tensors that have a gradient."""
        return [name for name, t in named(self.arguments) if t.dtype == torch.float64 and name not in self.constants]

    def by(self, impl: str = "auto") -> Callable[..., Any]:
        """The op with its options, to be called with the arguments by name."""
        return partial(getattr(crossmae_kernels, self.op), **self.options, impl=impl)

    def leaves(self, dtype: torch.dtype, frozen: Collection[str] = ()) -> dict[str, Any]:
        """Fresh arguments in ``dtype``, which want a gradient but for those in ``frozen``."""
        trained = set(self.differentiable) - set(frozen)

        def leaf(name: str, tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64:
                return tensor
            return tensor.detach().to(dtype, copy=True).requires_grad_(name in trained)

        return mapped(self.arguments, leaf)

    def rounded(self, dtype: torch.dtype) -> "Problem":
        """The same with arguments that ``dtype`` holds, in float64."""

        def rounded(_: str, tensor: Tensor) -> Tensor:
            return tensor.to(dtype).double() if tensor.dtype == torch.float64 else tensor

        return replace(self, arguments=mapped(self.arguments, rounded))

    def having(self, **arguments: Argument) -> "Problem":
        """The same with other arguments in place of some."""
        return replace(self, arguments=self.arguments | arguments)

    @contextmanager
    def in_form(self) -> Iterator[None]:
        """Ask for its forms until the block ends."""
        with ExitStack() as stack:
            for operator, form in self.forms.items():
                stack.enter_context(form_of(operator, form))
            yield


class Draw:
    """Draws arguments on a device from a seed."""

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed numbers."""
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=self.dtype).mul_(scale)

    def uniform(self, *shape: int) -> Tensor:
        """float32 from 0.5 to 1.5, such as statistics of pixels have."""
        return torch.rand(shape, generator=self._generator, device=self.device) + 0.5

    def bytes(self, *shape: int) -> Tensor:
        """uint8 from 0 to 255."""
        return torch.randint(256, shape, generator=self._generator, device=self.device, dtype=torch.uint8)

    def ids(self, batch: int, count: int, rows: int) -> Tensor:
        """int64 ``(batch, count)`` below ``rows``, in any order; in an image none repeats before all have come."""
        rounds = -(-count // rows)
        noise = torch.rand(batch, rounds, rows, generator=self._generator, device=self.device)
        return noise.argsort(-1).flatten(1)[:, :count].contiguous()
