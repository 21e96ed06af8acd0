"""Interpret the numbers of an image file: brightness on some scale, or missing data."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crossmae.model.config import Numbers

Array = npt.NDArray[Any]

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in Pillow

# Common no-data values: GDAL's and ESRI's, and from 1e20 on those of netCDF and climate models.
_MARKERS = (-9999, -99999, -(2**15), -(2**31), -(2**63))
_BEYOND = 1e20


class UnreadableImage(ValueError):  # noqa: N818 - the image is at fault, not the code
    """An image that cannot be read as requested; the message gives its name and the reason."""


def printable(path: str | Path) -> str:
    """A path for one line of a log: line breaks, control characters and bytes in no encoding are escaped."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn any exception in the block into UnreadableImage with the image's name."""
    try:
        yield
    # Parsers raise anything for broken files: struct.error, IndexError, SyntaxError, zlib.error, MemoryError ...
    except Exception as error:
        raise UnreadableImage(f"{name} cannot be read: {str(error) or type(error).__name__}") from error


@dataclass(frozen=True)
class Picture:
    """The content of an image file.

    Attributes:
        name: how error messages refer to it.
        values: ``(H, W, C)``, as in the file.
        orientation: EXIF's number.
        full: the value of full brightness, for unsigned integers of up to 16 bits; None for other types.
        missing: ``(H, W, C)`` or ``(H, W, 1)``, true for missing data; None if there is none.
    """

    name: str
    values: Array
    orientation: int = 1
    full: int | None = None
    missing: Array | None = None

    def tensor(
        self,
        channels: int,
        dtype: torch.dtype | None = None,
        numbers: Numbers | None = None,
        fill: Sequence[float] | None = None,
    ) -> Tensor:
        """The image ``(C, H, W)``, upright; see ``decoding.decode``. Raises UnreadableImage."""
        with reading(self.name):
            image = with_channels(self._brightness(dtype, numbers), channels)
            if self.missing is not None:
                missing = torch.from_numpy(self.missing).permute(2, 0, 1)
                if len(missing) != channels:
                    missing = missing.any(dim=0, keepdim=True)
                if missing.all():
                    raise ValueError("all of its data are missing")
                value = torch.tensor([math.nan] * channels if fill is None else list(fill))
                image = torch.where(missing, value[:, None, None], image)
            return _upright(image, self.orientation)

    def _brightness(self, dtype: torch.dtype | None, numbers: Numbers | None) -> Tensor:
        """``(C, H, W)``, uint8 or float32; arbitrary values for missing data."""
        kind = self.values.dtype
        if kind.kind not in "buif":
            raise ValueError(f"it holds {kind.name}; integers and floats are supported")
        shares = self.full is not None if numbers is None else numbers == "shares"
        if shares and self.full is None:
            raise ValueError(
                f"it holds {kind.name}, which has no full scale; "
                "set data.numbers=values to pretrain on the numbers as they are"
            )
        if kind == np.bool_:  # as numbers 0 and 1
            return replace(self, values=self.values * np.uint8(255 if shares else 1))._brightness(dtype, numbers)
        plain = kind == np.uint8 and shares and self.missing is None
        if dtype == torch.uint8 and not plain:
            what = "missing data" if kind == np.uint8 and shares else kind.name
            raise ValueError(f"it holds {what}, which uint8 cannot represent; data.dtype=float32 can")
        if plain:
            return in_dtype(_planes(self.values), dtype or torch.uint8)
        if self.full is not None and shares:
            return _planes((self.values / np.float64(self.full)).astype(np.float32))
        return _planes(self._as_float32())

    def _as_float32(self) -> Array:
        with np.errstate(over="ignore"):
            floats = self.values.astype(np.float32)
        known = ... if self.missing is None else ~np.broadcast_to(self.missing, floats.shape)
        exact, rounded = self.values[known], floats[known]
        if not np.isfinite(rounded).all():
            raise ValueError("it holds values beyond float32")
        if exact.dtype.kind in "ui" and exact.dtype.itemsize > 2 and exact.size:
            lost, spread = float(np.abs(rounded.astype(np.float64) - exact).max()), float(exact.std(dtype=np.float64))
            if 0 < spread < 128 * lost:
                raise ValueError(
                    f"it holds integers around {exact.flat[0]:,} that are too close together for float32; "
                    "subtract a common offset"
                )
        return floats


def no_data(array: Array, named: Sequence[float]) -> Array | None:
    """Where an array holds one of the values that mark missing data; None if nowhere.

    If any value is named, non-finite values are missing data too.
    """
    floats = array.dtype.kind == "f"
    found = ~np.isfinite(array) if floats and named else np.zeros(array.shape, np.bool_)
    for value in named:
        if floats:
            with np.errstate(over="ignore"):  # NumPy compares in the array's own precision
                found |= array == value
        elif math.isfinite(value) and value == int(value):
            found |= array == int(value)
    return found if found.any() else None


def refuse_markers(array: Array, missing: Array | None) -> None:
    """Refuse numbers that are unlikely to be brightness, unless a setting says what they are.

    Raises:
        ValueError: with the number, and the setting that declares it.
    """
    known = array if missing is None else array[~np.broadcast_to(missing, array.shape)]
    if known.dtype.kind not in "if" or not known.size:
        return
    if not np.isfinite(known).all():
        raise ValueError(
            "it holds values that are not finite; set data.nodata=nan to pretrain with them filled by the mean"
        )
    low, high = known.min(), known.max()
    marked = [float(value) for value in (low, high) if abs(float(value)) >= _BEYOND]
    marked += [float(m) for m in _MARKERS if low <= m and (known == m).any()]
    if marked:
        raise ValueError(f"it holds {like_no_data(marked[0])}")


def like_no_data(value: float) -> str:
    """Advice on a value that may mark missing data; the value as printed parses back to exactly itself."""
    exact = f"{value:.17g}"
    return (
        f"{exact}, which looks like no data; set data.nodata={exact} to pretrain with it filled by the mean, "
        "or data.nodata=nan to take it as a value"
    )


def in_dtype(image: Tensor, dtype: torch.dtype) -> Tensor:
    """8-bit values as shares of 255 if ``dtype`` is a float."""
    return image.to(dtype) / 255 if dtype.is_floating_point and not image.is_floating_point() else image


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Greyscale ``(1, H, W)`` as RGB, RGB as greyscale; raises ValueError for any other change."""
    if len(image) == channels:
        return image
    if (len(image), channels) == (1, 3):
        return image.expand(3, -1, -1)
    if (len(image), channels) == (3, 1):
        grey = torch.tensordot(torch.tensor(LUMA), image.float(), dims=1)[None]
        return grey if image.is_floating_point() else grey.round().to(image.dtype)
    raise mismatch(len(image), channels)


def mismatch(own: int, asked: int) -> ValueError:
    """The error for an image with another number of channels than requested."""
    return ValueError(
        f"its number of channels is {own}, but {asked} were requested; "
        f"set model_options.channels={own} to pretrain with it"
    )


def _planes(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Undo EXIF's orientation: swap rows and columns for 5 to 8, then flip as needed."""
    if orientation in (5, 6, 7, 8):
        image = image.mT
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return image if flipped is None else image.flip(flipped)
