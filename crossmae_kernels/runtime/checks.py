"""Argument checks shared by all ops: every problem of a call, in one message, before anything is allocated."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from crossmae_kernels.runtime.autocast import autocasts


class ArgumentChecks:
    """Collects what is wrong with the arguments of one op call.

    Shapes are given as patterns such as ``"B Q D"``: a letter stands for a size that must be the same wherever it
    occurs, a number for itself, ``...`` in front for any leading dimensions. Call ``raise_if_any`` when all
    arguments were looked at: ``TypeError`` when an argument is no tensor or has a wrong dtype, ``ValueError`` for
    everything else.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, int] = {}
        self._wrong_types: list[str] = []
        self._wrong_values: list[str] = []
        self._reference: tuple[str, Tensor] | None = None

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
        if not tensor.dtype.is_floating_point and tensor.dtype != or_dtype:
            alternative = f" or {or_dtype}" if or_dtype else ""
            self._wrong_types.append(f"{name} must be floating point{alternative}, got {tensor.dtype}")
        elif dtype is not None and tensor.dtype != dtype:
            self._wrong_types.append(f"{name} must be {dtype}, got {tensor.dtype}")
        elif self._reference is None:
            self._reference = (name, tensor)
        else:
            first, reference = self._reference
            # Autocast promises to bring mixed dtypes together itself.
            free = any_dtype or dtype is not None or autocasts(tensor.device.type)
            if tensor.dtype != reference.dtype and not free:
                self._wrong_types.append(f"{name} must be {reference.dtype} like {first}, got {tensor.dtype}")
        self._shape(name, tensor, pattern)
        self._device(name, tensor)

    def optional(self, name: str, tensor: object, pattern: str) -> None:
        """Like ``tensor``; None is fine too."""
        if tensor is not None:
            self.tensor(name, tensor, pattern)

    def ids(self, name: str, ids: object, pattern: str, limit: int) -> None:
        """Integer ids in ``[0, limit)``.

        The range is read where reading costs no wait, on a CPU, unless the call is only traced. On an accelerator
        the op that gathers refuses ids out of range itself.
        """
        if not isinstance(ids, Tensor):
            self._wrong_types.append(f"{name} must be a tensor of shape ({_commas(pattern)}), got {type(ids).__name__}")
            return
        if ids.dtype not in (torch.int64, torch.int32):
            self._wrong_types.append(f"{name} must be int64 or int32, got {ids.dtype}")
        elif ids.device.type == "cpu" and ids.numel() and not traced(ids):
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= limit:
                self._wrong_values.append(f"{name} must lie in [0, {limit}), got ids from {low} to {high}")
        self._shape(name, ids, pattern)
        self._device(name, ids)

    def that(self, condition: bool, message: str) -> None:
        """Note ``message`` unless ``condition`` holds."""
        if not condition:
            self._wrong_values.append(message)

    def size(self, letter: str) -> int:
        """The size that a pattern letter took; raises what was found so far if it took none."""
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
        symbols: Sequence[str] = pattern.split()
        shape: Sequence[int] = tensor.shape
        if symbols and symbols[0] == "...":
            symbols = symbols[1:]
            shape = shape[len(shape) - len(symbols) :] if len(shape) >= len(symbols) else shape
        fits = len(symbols) == len(shape)
        for symbol, size in zip(symbols, shape, strict=False):
            wanted = int(symbol) if symbol.isdigit() else self.sizes.get(symbol, size)
            fits = fits and size == wanted
        if not fits:
            known = ", ".join(f"{s}={self.sizes[s]}" for s in symbols if s in self.sizes)
            self._wrong_values.append(
                f"{name} must have shape ({_commas(pattern)})"
                + (f" with {known}" if known else "")
                + f", got {tuple(tensor.shape)}"
            )
            return
        for symbol, size in zip(symbols, shape, strict=True):
            if not symbol.isdigit():
                self.sizes[symbol] = size

    def _device(self, name: str, tensor: Tensor) -> None:
        if self._reference is not None:
            first, reference = self._reference
            if tensor.device != reference.device:
                self._wrong_values.append(f"{name} must be on {reference.device} like {first}, got {tensor.device}")


def traced(tensor: Tensor) -> bool:
    """Whether there is no data behind the tensor, only shapes: in compiled graphs and under ``FakeTensorMode``."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)


def _commas(pattern: str) -> str:
    return ", ".join(pattern.split())
