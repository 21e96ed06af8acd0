"""Argument checks shared by all ops: every problem of a call, in one message, before anything is allocated."""

import reprlib
from collections.abc import Sequence
from fractions import Fraction
from math import inf
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from crossmae_kernels.runtime.autocast import autocasts
from crossmae_kernels.runtime.device import constant_when_compiled

# PyTorch counts its storage formats of 8 bits and fewer as floating point too, and computes with none of them.
FLOATING_POINT = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Compilers put symbols in place of numbers; NumPy has numbers of its own.
_INTEGERS: tuple[Any, ...] = (int, torch.SymInt, Integral)
_NUMBERS: tuple[Any, ...] = (float, int, torch.SymFloat, torch.SymInt, Real)
_FLAGS = (bool, torch.SymBool)
_SEQUENCES = (list, tuple, Sequence, torch.nn.ParameterList)


class ArgumentChecks:
    """Collects what is wrong with the arguments of one op call.

    Shapes are given as patterns such as ``"B Q D"``: a letter stands for a size that must be the same wherever it
    occurs, a number for itself, ``...`` in front for any leading dimensions. Call ``raise_if_any`` once all arguments
    are checked: ``TypeError`` when an argument is of a wrong type or dtype, ``ValueError`` for everything else.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str | int, int] = {}
        self._wrong_types: list[str] = []
        self._wrong_values: list[str] = []
        self._reference: Tensor | None = None
        self._first = ""

    def tensor(
        self,
        name: str,
        tensor: object,
        pattern: str,
        any_dtype: bool = False,
        or_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A floating-point tensor of the given shape, on the device and of the dtype of the first one seen.

        With ``any_dtype`` its floating-point dtype is free, ``or_dtype`` is one more that it may have, and ``dtype``
        the only one.
        """
        if not isinstance(tensor, Tensor):
            self._wrong_types.append(
                f"{name} must be a tensor of shape ({_commas(pattern)}), got {type(tensor).__name__}"
            )
            return
        reference = self._reference
        if reference is not None and tensor.dtype == reference.dtype and dtype is None:
            pass
        elif tensor.dtype not in FLOATING_POINT and tensor.dtype != or_dtype:
            alternative = f", or {or_dtype}" if or_dtype else ""
            self._wrong_types.append(f"{name} must be {_FLOATING_POINT}{alternative}, got {tensor.dtype}")
        elif dtype is not None and tensor.dtype != dtype:
            self._wrong_types.append(f"{name} must be {dtype}, got {tensor.dtype}")
        elif reference is None:
            self._reference, self._first = tensor, name
        # Autocast promises to bring mixed dtypes together itself.
        elif not (any_dtype or dtype is not None or autocasts(tensor.device.type)):
            self._wrong_types.append(f"{name} must be {reference.dtype} like {self._first}, got {tensor.dtype}")
        self._shape(name, tensor, pattern)
        self._device(name, tensor)

    def optional(self, name: str, tensor: object, pattern: str) -> None:
        """Like ``tensor``; None is fine too."""
        if tensor is not None:
            self.tensor(name, tensor, pattern)

    def tensors(self, name: str, several: object, pattern: str) -> list[Tensor]:
        """At least one tensor, each as ``tensor`` has them; returns a list of them, empty if there is none.

        Those of the same shape, dtype and device as the first are as right or wrong as it is, and named by it.
        """
        if not isinstance(several, _SEQUENCES):
            self._wrong_types.append(f"{name} must be a sequence of tensors, got {type(several).__name__}")
            return []
        listed: list[Tensor] = list(several)
        self.that(len(listed) > 0, f"{name} must hold at least one tensor, got none")
        first = listed[0] if listed else None
        for index, tensor in enumerate(listed):
            if index == 0 or not _alike(tensor, first):
                self.tensor(f"{name}[{index}]", tensor, pattern)
        return listed

    def integer(self, name: str, value: object) -> bool:
        """A positive integer; says whether it is one."""
        if not isinstance(value, _INTEGERS) or isinstance(value, bool):
            self._wrong_types.append(f"{name} must be a positive integer, got {_shown(value)}")
        elif not value > 0:
            self._wrong_values.append(f"{name} must be a positive integer, got {_shown(value)}")
        else:
            return True
        return False

    def number(self, name: str, value: Any, least: float = -inf) -> None:
        """A finite number of at least ``least``."""
        if not isinstance(value, _NUMBERS) or isinstance(value, (bool, Fraction)):
            self._wrong_types.append(f"{name} must be a number, got {_shown(value)}")
        elif not (value >= least and -inf < value < inf):
            bound = "" if least == -inf else f" of at least {least}"
            self._wrong_values.append(f"{name} must be a finite number{bound}, got {_shown(value)}")

    def flag(self, name: str, value: object) -> None:
        """True or False itself."""
        if not isinstance(value, _FLAGS):
            self._wrong_types.append(f"{name} must be True or False, got {_shown(value)}")

    def choice(self, name: str, value: object, options: Sequence[str | None]) -> None:
        """One of ``options``."""
        if value is not None and not isinstance(value, str):
            self._wrong_types.append(f"{name} must be {_either(options)}, got {_shown(value)}")
        elif value not in options:
            self._wrong_values.append(f"{name} must be {_either(options)}, got {_shown(value)}")

    def dtype(self, name: str, value: object) -> None:
        """A floating-point dtype that tensors are computed in."""
        if not isinstance(value, torch.dtype) or value not in FLOATING_POINT:
            self._wrong_types.append(f"{name} must be {_FLOATING_POINT}, got {_shown(value)}")

    def ids(self, name: str, ids: object, pattern: str, limit: int) -> None:
        """Integer ids in ``[0, limit)``.

        The range is checked on a CPU, where reading it waits for nothing; compiled code asserts it there when it runs.
        On an accelerator the op that gathers refuses ids out of range itself.
        """
        if not isinstance(ids, Tensor):
            self._wrong_types.append(f"{name} must be a tensor of shape ({_commas(pattern)}), got {type(ids).__name__}")
            return
        if ids.dtype not in (torch.int64, torch.int32):
            self._wrong_types.append(f"{name} must be int64 or int32, got {ids.dtype}")
        elif ids.device.type == "cpu" and torch.compiler.is_compiling():
            inside = ((ids >= 0) & (ids < limit)).all()
            torch._assert_async(inside, f"{self.op}: {name} must lie within the table, and one does not")
        elif _readable(ids):
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= limit:
                self._wrong_values.append(f"{name} must lie in [0, {limit}), got ids from {low} to {high}")
        self._shape(name, ids, pattern)
        self._device(name, ids)

    def positive(self, name: str, tensor: object) -> None:
        """All values are positive, none is NaN; checked on a CPU, where reading them waits for nothing."""
        if isinstance(tensor, Tensor) and tensor.dtype in FLOATING_POINT and _readable(tensor):
            low = float(tensor.detach().amin())
            self.that(low > 0, f"{name} must be positive, got {low:g}")

    def that(self, condition: bool, message: str) -> None:
        """Note ``message`` unless ``condition`` holds."""
        if not condition:
            self._wrong_values.append(message)

    def size(self, letter: str) -> int:
        """The size that a letter of a pattern stands for; raises the problems found so far if it has none yet."""
        if letter not in self.sizes:
            self.raise_if_any()
        return self.sizes[letter]

    def raise_if_any(self) -> None:
        """Raise one error that lists every problem noted so far."""
        problems = self._wrong_types + self._wrong_values
        if problems:
            error = TypeError if self._wrong_types else ValueError
            raise error(f"{self.op}: " + "; ".join(problems))

    def _shape(self, name: str, tensor: Tensor, pattern: str) -> None:
        leading, symbols = _parsed(pattern)
        shape: Sequence[int] = tensor.shape
        if leading and len(shape) > len(symbols):
            shape = shape[len(shape) - len(symbols) :]
        sizes = self.sizes
        fits = len(symbols) == len(shape)
        unknown = False
        for symbol, size in zip(symbols, shape, strict=False):
            known_size = sizes.get(symbol, symbol)  # a number stands for itself
            if known_size is symbol and isinstance(symbol, str):
                unknown = True
            elif size != known_size:
                fits = False
        if not fits:
            known = ", ".join(f"{symbol}={sizes[symbol]}" for symbol in symbols if symbol in sizes)
            self._wrong_values.append(
                f"{name} must have shape ({_commas(pattern)})"
                + (f" with {known}" if known else "")
                + f", got {tuple(tensor.shape)}"
            )
            return
        if unknown:  # in the first tensors only
            for symbol, size in zip(symbols, shape, strict=True):
                if isinstance(symbol, str):
                    sizes[symbol] = size

    def _device(self, name: str, tensor: Tensor) -> None:
        reference = self._reference
        if reference is not None and tensor.device != reference.device:
            self._wrong_values.append(f"{name} must be on {reference.device} like {self._first}, got {tensor.device}")


_known_patterns: dict[str, tuple[bool, tuple[str | int, ...]]] = {}


@constant_when_compiled
def _parsed(pattern: str) -> tuple[bool, tuple[str | int, ...]]:
    """Whether any leading dimensions are allowed, and then letters and numbers."""
    if pattern not in _known_patterns:
        symbols = pattern.split()
        leading = symbols[:1] == ["..."]
        letters = tuple(int(symbol) if symbol.isdigit() else symbol for symbol in symbols[leading:])
        _known_patterns[pattern] = leading, letters
    return _known_patterns[pattern]


def _alike(one: object, other: object) -> bool:
    """Whether both are tensors that no check of ``tensor`` can tell apart."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def traced(tensor: Tensor) -> bool:
    """Whether there is no data behind the tensor, only shapes: in compiled graphs and under ``FakeTensorMode``."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)


def _readable(tensor: Tensor) -> bool:
    """Whether there are values, and reading them waits for nothing."""
    return tensor.device.type == "cpu" and not traced(tensor) and tensor.numel() > 0


# As messages have it.
_FLOATING_POINT = "floating point ({})".format(", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING_POINT))


def _either(options: Sequence[str | None]) -> str:
    return " or ".join(map(repr, options))


def _shown(value: object) -> str:
    """A wrong value in an error: short, and in one line."""
    return " ".join(reprlib.repr(value).split())


def _commas(pattern: str) -> str:
    return ", ".join(pattern.split())
