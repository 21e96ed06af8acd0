"""Pictures and arrays of many formats as tensors: Pillow for pictures, tifffile for scientific TIFF, NumPy for .npy."""

import io
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**30  # of a picture; Pillow's own limit would refuse photographs 20,000 pixels wide
GAP = 2  # between a reduced picture and the size that was asked for, so that resizing still decides on its looks
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601, as Pillow has it

_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274  # a tag of EXIF and TIFF
_OPENING = threading.Lock()

_Array = npt.NDArray[Any]


class UnreadableImage(ValueError):  # noqa: N818 - it is the image that is at fault
    """An image that cannot be read as it was asked for; the message has its name and the reason."""


def decode(
    source: Path | bytes,
    name: str,
    channels: int,
    dtype: torch.dtype = torch.uint8,
    at_least: tuple[int, int] | None = None,
) -> Tensor:
    """One image ``(C, H, W)``, upright.

    The format is told by content, not by name: what Pillow reads (of an animation the first frame), TIFF of any number
    of channels, and NumPy's .npy of shape ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``. Pages of a TIFF are channels if
    there are as many as were asked for, else the first is read. Greyscale becomes RGB and RGB greyscale as needed,
    where alpha is dropped; any other number of channels must be the file's.

    PNGs of 16 bits and several channels have their upper 8 bits read, and are refused as ``torch.float32``.

    Args:
        source: path, or the content of a file.
        name: what error messages call it.
        channels: to return.
        dtype: ``torch.uint8``: 8 bits as they are, other unsigned integers scaled to 0 ... 255 and rounded; or
            ``torch.float32``: unsigned integers as shares of their full scale, floats as they are.
        at_least: height and width that suffice. A picture of 8 bits comes reduced by a whole number where both sides
            stay ``GAP`` times the larger of the two, a JPEG for a fraction of the cost; others come in full.

    Raises:
        UnreadableImage: if it cannot be read, has other channels, more than ``MAX_PIXELS``, floats for ``torch.uint8``,
            values that are not finite, or signed integers, whose scale nobody knows.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array, orientation = _read(data, channels, dtype, at_least)
        return _upright(with_channels(_scaled(array, dtype), channels), orientation)
    # Parsers of broken files raise anything: struct.error, IndexError, SyntaxError, zlib.error, MemoryError ...
    except Exception as error:
        raise UnreadableImage(f"{name} cannot be read: {str(error) or type(error).__name__}") from error


def _read(data: bytes, channels: int, dtype: torch.dtype, at_least: tuple[int, int] | None) -> tuple[_Array, int]:
    """An array ``(H, W, C)`` as the file holds it, and its orientation as EXIF numbers them."""
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(_NPY):
        return _numpy(data, channels), 1
    if data.startswith(_TIFF):
        return _tiff(data, channels, at_least)
    if dtype != torch.uint8 and data.startswith(_PNG) and data[24:25] == b"\x10" and data[25:26] != b"\0":
        raise ValueError(
            "it is a PNG of 16 bits and several channels, of which Pillow keeps 8 bits; TIFF keeps them all"
        )
    return _picture(data, channels, at_least)


def _picture(data: bytes, channels: int, at_least: tuple[int, int] | None) -> tuple[_Array, int]:
    """What Pillow reads."""
    from PIL import Image, UnidentifiedImageError

    with _OPENING:  # its limit is one for the whole process
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise ValueError("its format is not known") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        _check_size(image.height, image.width)
        enough = GAP * max(at_least) if at_least else max(image.size)
        image.draft(image.mode, (enough, enough))
        image.load()
        return _pixels(image, channels, max(1, min(image.size) // enough)), _orientation(image)


def _pixels(image: "Image.Image", channels: int, reduction: int) -> _Array:
    """A loaded picture as ``(H, W, C)``, of greyscale with one channel."""
    mode = image.mode
    if mode.startswith(("I", "F")):
        array = np.array(image)
        if mode != "I":
            return array[..., None]
        if array.min() < 0 or array.max() > 65535:  # 32 bits that hold 16, as of PNM
            raise ValueError("it holds integers of 32 bits per pixel; 8 and 16 are read")
        return array.astype(np.uint16)[..., None]
    grey = mode in ("1", "L", "LA", "La")
    if mode == "RGBX":
        own, wanted = 4, mode
    elif channels in (1, 3):
        own, wanted = channels, "L" if grey or channels == 1 else "RGB"
    else:
        own = (1 if grey else 3) + image.has_transparency_data
        wanted = "LA" if grey else "RGBA"
    if own != channels:
        raise _mismatch(own, channels)
    if mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert(mode.upper())
    array = np.array(image.convert(wanted).reduce(reduction))
    return array.reshape(*array.shape[:2], -1)


def _orientation(image: "Image.Image") -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a picture is no worse for broken notes
        return 1


def _tiff(data: bytes, channels: int, at_least: tuple[int, int] | None) -> tuple[_Array, int]:
    """TIFF: by Pillow, which knows more compressions, where it keeps all that there is; else by tifffile."""
    from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffFile

    with TiffFile(io.BytesIO(data)) as file:
        page, series = file.pages.first, file.series[0]
        bits, samples, inverted = page.bitspersample, page.samplesperpixel, page.photometric == PHOTOMETRIC.MINISWHITE
        other = {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS"}
        pages = other if "C" not in other else ["C"]
        stack = next((axis for axis in pages if samples == 1 and other[axis] == channels > 1), None)
        deep = samples == 1 and page.dtype in (np.uint16, np.float32) and not inverted
        if channels in (1, 3) and stack is None and (deep or (bits <= 8 and samples <= 4)):
            return _picture(data, channels, at_least)
        if bits not in (8, 16, 32, 64):
            raise ValueError(f"it has {bits} bits per sample; 8, 16, 32 and 64 are read")
        _check_size(page.imagelength, page.imagewidth)
        if stack is not None:
            array, axes = series.asarray(), series.axes
            for axis in other.keys() - {stack}:
                array, axes = array.take(0, axis=axes.index(axis)), axes.replace(axis, "")
            array = array.transpose([axes.index(axis) for axis in ("Y", "X", stack)])
        else:
            array = page.asarray().reshape(page.shaped)[:, 0]  # (samples or 1, H, W, 1 or samples)
            array = array[0] if page.shaped[0] == 1 else array[..., 0].transpose(1, 2, 0)
            alpha = page.extrasamples[-1:] in ((EXTRASAMPLE.ASSOCALPHA,), (EXTRASAMPLE.UNASSALPHA,))
            array = array[..., :-1] if alpha and channels in (1, 3) else array
        if inverted and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        orientation = page.tags.get(_ORIENTATION)
        return array, 1 if orientation is None else int(orientation.value)


def _numpy(data: bytes, channels: int) -> _Array:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise ValueError(f"its shape is {array.shape}; (H, W), (H, W, C) and (C, H, W) are read")
    for count in (channels, 1, 3) if channels in (1, 3) else (channels,):
        if array.shape[2] == count:
            break
        if array.shape[0] == count:
            array = array.transpose(1, 2, 0)
            break
    else:
        raise ValueError(f"its shape is {array.shape}, where {channels} channels were asked for")
    _check_size(*array.shape[:2])
    return array


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"it has {height} x {width} pixels; up to {MAX_PIXELS:,} are read")
    if height * width == 0:
        raise ValueError(f"it has {height} x {width} pixels")


def _mismatch(own: int, asked: int) -> ValueError:
    return ValueError(f"its number of channels is {own}, where {asked} were asked for")


def _scaled(array: _Array, dtype: torch.dtype) -> Tensor:
    """``(H, W, C)`` of any dtype as a tensor ``(C, H, W)`` of ``torch.uint8`` or ``torch.float32``."""
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    if array.dtype.kind not in "uf":
        raise ValueError(f"it holds {array.dtype}; unsigned integers and floats are read")
    if array.dtype.kind == "f":
        if dtype == torch.uint8:
            raise ValueError("it holds floats, which are read as float32 and not as uint8")
        if not np.isfinite(array).all():
            raise ValueError("it holds values that are not finite")
        array = array.astype(np.float32)
    elif array.dtype != np.uint8 and dtype == torch.uint8:
        array = np.rint(array * (255 / np.iinfo(array.dtype).max)).astype(np.uint8)
    elif array.dtype != np.uint8:
        array = (array / np.float64(np.iinfo(array.dtype).max)).astype(np.float32)
    image = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    return in_dtype(image, dtype)


def in_dtype(image: Tensor, dtype: torch.dtype) -> Tensor:
    """8 bits as shares of 255 if ``dtype`` is a float."""
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
    raise _mismatch(len(image), channels)


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Undo EXIF's orientation: 5 to 8 swap rows and columns, then some of them run backwards."""
    if orientation in (5, 6, 7, 8):
        image = image.mT
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return image if flipped is None else image.flip(flipped)
