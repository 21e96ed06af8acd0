"""Argument checks shared by all ops: report all problems of a call in one message, before anything is allocated."""

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

# PyTorch also calls its storage formats of 8 bits and fewer floating point, but cannot compute with them.
FLOATING_POINT = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Compilers replace numbers by symbols, and NumPy has its own number types.
_INTEGERS: tuple[Any, ...] = (int, torch.SymInt, Integral)
_NUMBERS: tuple[Any, ...] = (float, int, torch.SymFloat, torch.SymInt, Real)
_FLAGS = (bool, torch.SymBool)
_SEQUENCES = (list, tuple, Sequence, torch.nn.ParameterList)


class ArgumentChecks:
    """Collects the problems of an op call's arguments.

    Shapes are given as patterns such as ``"B Q D"``: a letter stands for a size that must be the same wherever it
    occurs, a number for itself, a leading ``...`` for any leading dimensions. Call ``raise_if_any`` after checking all
    arguments: ``TypeError`` if an argument has a wrong type or dtype, ``ValueError`` for everything else.
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
        """Check for a floating-point tensor of the given shape, with the device and dtype of the first one checked.

        With ``any_dtype`` any floating-point dtype is allowed; ``or_dtype`` allows one more dtype, ``dtype`` only that
        one.
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
        # Autocast casts mixed dtypes itself.
        elif not (any_dtype or dtype is not None or autocasts(tensor.device.type)):
            self._wrong_types.append(f"{name} must be {reference.dtype} like {self._first}, got {tensor.dtype}")
        self._shape(name, tensor, pattern)
        self._device(name, tensor)

    def optional(self, name: str, tensor: object, pattern: str) -> None:
        """Like ``tensor``, but None is allowed."""
        if tensor is not None:
            self.tensor(name, tensor, pattern)

    def tensors(self, name: str, several: object, pattern: str) -> list[Tensor]:
        """Check a sequence of at least one tensor, each like ``tensor``; returns a list, empty if there is none.

        Tensors with the shape, dtype and device of the first share its verdict and are reported through it.
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
        """Check for a positive integer; returns whether it is one."""
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
        """Check for True or False."""
        if not isinstance(value, _FLAGS):
            self._wrong_types.append(f"{name} must be True or False, got {_shown(value)}")

    def choice(self, name: str, value: object, options: Sequence[str | None]) -> None:
        """Check for one of ``options``."""
        if value is not None and not isinstance(value, str):
            self._wrong_types.append(f"{name} must be {_either(options)}, got {_shown(value)}")
        elif value not in options:
            self._wrong_values.append(f"{name} must be {_either(options)}, got {_shown(value)}")

    def dtype(self, name: str, value: object) -> None:
        """Check for a floating-point dtype that PyTorch can compute in."""
        if not isinstance(value, torch.dtype) or value not in FLOATING_POINT:
            self._wrong_types.append(f"{name} must be {_FLOATING_POINT}, got {_shown(value)}")

    def ids(self, name: str, ids: object, pattern: str, limit: int) -> None:
        """Check for integer ids in ``[0, limit)``.

        The range is checked only on a CPU, where reading it does not synchronize; compiled code asserts it there at run
        time. On an accelerator the gathering op itself handles ids out of range.
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
        """Check that all values are positive and none is NaN; only on a CPU, where reading does not synchronize."""
        if isinstance(tensor, Tensor) and tensor.dtype in FLOATING_POINT and _readable(tensor):
            low = float(tensor.detach().amin())
            self.that(low > 0, f"{name} must be positive, got {low:g}")

    def that(self, condition: bool, message: str) -> None:
        """Record ``message`` unless ``condition`` holds."""
        if not condition:
            self._wrong_values.append(message)

    def size(self, letter: str) -> int:
        """The size a pattern's letter stands for; raises the problems found so far if it is not known yet."""
        if letter not in self.sizes:
            self.raise_if_any()
        return self.sizes[letter]

    def raise_if_any(self) -> None:
        """Raise one error listing all recorded problems."""
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
    """Whether any leading dimensions are allowed, and the letters and numbers."""
    if pattern not in _known_patterns:
        symbols = pattern.split()
        leading = symbols[:1] == ["..."]
        letters = tuple(int(symbol) if symbol.isdigit() else symbol for symbol in symbols[leading:])
        _known_patterns[pattern] = leading, letters
    return _known_patterns[pattern]


def _alike(one: object, other: object) -> bool:
    """Whether both are tensors that ``tensor``'s checks cannot distinguish."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def traced(tensor: Tensor) -> bool:
    """Whether the tensor's values cannot be read: in compiled graphs, ``FakeTensorMode`` and ``torch.func``."""
    return (
        torch.compiler.is_compiling()
        or isinstance(tensor, FakeTensor)
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _readable(tensor: Tensor) -> bool:
    """Whether there are values that can be read without synchronizing."""
    return tensor.device.type == "cpu" and not traced(tensor) and tensor.numel() > 0


# For messages.
_FLOATING_POINT = "floating point ({})".format(", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING_POINT))


def _either(options: Sequence[str | None]) -> str:
    return " or ".join(map(repr, options))


def _shown(value: object) -> str:
    """A wrong value for an error message: short, and on one line."""
    return " ".join(reprlib.repr(value).split())


def _commas(pattern: str) -> str:
    return ", ".join(pattern.split())
