"""Decode images of many formats into tensors: Pillow for pictures, tifffile for scientific TIFF, NumPy for .npy."""

import io
import logging
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crossmae.model.config import Numbers
from crossmae.training.data.values import Array, Picture, mismatch, no_data, reading, refuse_markers
from crossmae.training.data.values import UnreadableImage as UnreadableImage  # raised by decode

if TYPE_CHECKING:
    from PIL import Image, ImageFile

MAX_PIXELS = 2**30  # of a picture; Pillow's own limit would refuse photographs 20,000 pixels wide
GAP = 2  # of a reduced picture to the requested size, so that the final resizing still determines its quality

_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIZE_OF_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of the codestream and its size marker
_ORIENTATION, _GDAL_NODATA = 274, 42113  # EXIF and TIFF tags
# Colours of a TIFF that are neither RGB nor brightness; Pillow converts those of 8 bits.
_OTHER_COLOURS = {"PALETTE", "SEPARATED", "YCBCR", "CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV"}
_OPENING = threading.Lock()

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # the exceptions raised say what is wrong with a file


class _UnknownFormatError(ValueError):
    """Pillow does not know it."""


def decode(
    source: Path | bytes,
    name: str,
    channels: int,
    dtype: torch.dtype | None = None,
    at_least: tuple[int, int] | None = None,
    numbers: Numbers | None = None,
    nodata: float | None = None,
    fill: Sequence[float] | None = None,
) -> Tensor:
    """Decode one image to ``(C, H, W)``, upright.

    The format is recognised by content, not by name: everything Pillow reads (the first frame of an animation), TIFF
    with any number of channels, and NumPy's .npy of shape ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``. A TIFF's pages
    are its channels if there are ``channels`` of them, else the first page is read. Greyscale is converted to RGB and
    RGB to greyscale as needed, dropping alpha; any other number of channels must match the file's.

    Args:
        source: path, or the content of a file.
        name: how error messages refer to it.
        channels: number of channels to return.
        dtype: ``torch.float32``, or ``torch.uint8``, which refuses images that need more than 8 bits. None: uint8 for
            shares of 8 bits, else float32.
        at_least: sufficient height and width. An 8-bit picture is reduced by an integer factor if both sides stay at
            least ``GAP`` times the larger of the two (for a JPEG, at a fraction of the cost); others come at full size.
        numbers: "shares": fractions of full scale, 255 or 65,535; refuses all but unsigned integers of up to 16 bits,
            as others have none; "values": floats and integers as they are. None: shares if there is a full scale.
        nodata: the value that marks missing data, in addition to the one in a TIFF's own GDAL_NODATA tag. If given,
            values that are not finite are missing data too; with NaN, only those are.
        fill: value of each channel for missing data; NaN by default.

    Raises:
        UnreadableImage: if it cannot be read, has another number of channels, more than ``MAX_PIXELS``, only missing
            data, numbers of another kind, or, if ``nodata`` is None, values that are not finite or look like no data.
    """
    return read(source, name, channels, at_least, nodata).tensor(channels, dtype, numbers, fill)


def read(
    source: Path | bytes,
    name: str,
    channels: int,
    at_least: tuple[int, int] | None = None,
    nodata: float | None = None,
) -> Picture:
    """Read a file's content, see ``decode``; raises UnreadableImage."""
    with reading(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = source.read_bytes() if isinstance(source, Path) else source
        named = () if nodata is None else (nodata,)
        picture = _read(data, name, channels, at_least, named)
        if nodata is None:
            refuse_markers(picture.values, picture.missing)
        return picture


def _read(data: bytes, name: str, channels: int, at_least: tuple[int, int] | None, named: tuple[float, ...]) -> Picture:
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(_NPY):
        array = _numpy(data, channels)
        return _picture_of(name, array, no_data(array, named))
    if data.startswith(_TIFF):
        return _tiff(data, name, channels, at_least, named)
    return _picture(data, name, channels, at_least, named)


def _picture_of(
    name: str, array: Array, missing: Array | None, orientation: int = 1, full: int | None = None
) -> Picture:
    if array.dtype == np.bool_:
        full = 255  # also for 1-bit pictures
    if full is None and array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        full = int(np.iinfo(array.dtype).max)
    return Picture(name, array, orientation, full, missing)


def _picture(
    data: bytes, name: str, channels: int, at_least: tuple[int, int] | None, named: tuple[float, ...], bits: int = 16
) -> Picture:
    """Read with Pillow; ``bits`` is the depth of greyscale of up to 16 bits."""
    from PIL import Image, UnidentifiedImageError

    with _OPENING:  # Pillow's limit is global
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise _UnknownFormatError("its format is unknown") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        _check_size(image.height, image.width)
        if data.startswith(_PNG) and data[24:25] == b"\x10" and image.mode in ("RGB", "RGBA"):
            array = _deep_colours(image, data, channels)
            return _picture_of(name, array, no_data(array, named), _orientation(image))
        _refuse_lost_bits(image, data)
        # Averaging would mix missing values with their neighbours.
        enough = GAP * max(at_least) if at_least and not named else max(image.size)
        image.draft(image.mode, (enough, enough))
        image.load()
        array = _pixels(image, channels, max(1, min(image.size) // enough))
        missing = None
        if named:
            # A TIFF's tag names the palette index, other formats the colour.
            own = np.array(image.convert("RGB") if image.mode == "P" and image.format != "TIFF" else image)
            missing = no_data(own.reshape(*own.shape[:2], -1), named)
        if missing is not None and missing.shape != array.shape:  # channels were converted
            missing = np.any(missing, axis=-1, keepdims=True)
        full = 2**bits - 1 if array.dtype == np.uint16 else None
        return _picture_of(name, array, missing, _orientation(image), full)


def _deep_colours(image: "ImageFile.ImageFile", data: bytes, channels: int) -> Array:
    """Colours of a 16-bit PNG, ``(H, W, C)``, uint16: Pillow reads the upper byte or, on request, the lower one."""
    from PIL.PngImagePlugin import PngImageFile

    upper = image.tile[0]
    if upper.args not in ("RGB;16B", "RGBA;16B"):  # LA;16B
        raise ValueError("it is a 16-bit greyscale PNG with alpha, and Pillow reads only 8 bits of it; save it as TIFF")
    array = np.array(image).astype(np.uint16) << 8
    with PngImageFile(io.BytesIO(data)) as again:
        again.tile = [upper._replace(args=str(upper.args)[:-1] + "L")]
        array |= np.array(again)
    return array[..., :3] if channels in (1, 3) else array


def _refuse_lost_bits(image: "ImageFile.ImageFile", data: bytes) -> None:
    """Refuse images that Pillow would silently cut to 8 bits per channel."""
    if image.format == "PPM" and image.mode == "RGB" and isinstance(image.tile[0].args, tuple):
        white = image.tile[0].args[-1]
        if white > 255:
            raise ValueError(f"its colours go up to {white}, and Pillow reads only 8 bits of them; save it as TIFF")
    if image.format == "JPEG2000":
        sizes = data.index(_SIZE_OF_JPEG_2000) + 40
        count = int.from_bytes(data[sizes : sizes + 2], "big")
        depths = [1 + (data[sizes + 2 + 3 * i] & 0x7F) for i in range(count)]
        if len(depths) > 1 and max(depths) > 8:
            raise ValueError(f"it has {max(depths)} bits per channel, and Pillow reads only 8; save it as TIFF")


def _pixels(image: "Image.Image", channels: int, reduction: int) -> Array:
    """A loaded picture as ``(H, W, C)``, with one channel if greyscale."""
    mode = image.mode
    if mode.startswith(("I", "F")):
        array = np.array(image)
        if mode != "I":
            return array[..., None]
        if array.min() < 0 or array.max() > 65535:  # 16 bits stored in 32, as from PNM
            raise ValueError("it holds 32-bit integers; 8 and 16 bits are supported")
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
        raise mismatch(own, channels)
    if mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert(mode.upper())
    array = np.array(image.convert(wanted).reduce(reduction))
    return array.reshape(*array.shape[:2], -1)


def _orientation(image: "Image.Image") -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata do not harm the pixels
        return 1


def _tiff(data: bytes, name: str, channels: int, at_least: tuple[int, int] | None, named: tuple[float, ...]) -> Picture:
    """Read TIFF with Pillow, which knows more compressions, if it loses nothing; else with tifffile."""
    from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffFile

    with TiffFile(io.BytesIO(data)) as file:
        page, series = file.pages.first, file.series[0]
        apart = _is_stack(file.series, channels)  # pages written one by one
        named += _named_by(page.tags.get(_GDAL_NODATA))
        bits, samples, inverted = page.bitspersample, page.samplesperpixel, page.photometric == PHOTOMETRIC.MINISWHITE
        other = {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS"}
        pages = other if "C" not in other else ["C"]
        stack = next((axis for axis in pages if samples == 1 and other[axis] == channels > 1), None)
        deep = samples == 1 and page.dtype in (np.uint16, np.float32) and not inverted
        shallow = bits <= 8 and samples <= 4 and page.dtype in (np.uint8, np.bool_)
        if channels in (1, 3) and stack is None and not apart and (deep or shallow):
            with suppress(_UnknownFormatError):
                return _picture(data, name, channels, at_least, named, bits)
        if bits not in (8, 16, 32, 64):
            raise ValueError(f"it has {bits} bits per sample; 8, 16, 32 and 64 are supported")
        _check_size(page.imagelength, page.imagewidth)
        colours = getattr(page.photometric, "name", "")  # a mere number if unknown
        if channels in (1, 3) and colours in _OTHER_COLOURS:
            raise ValueError(f"its colours are {colours} of {bits} bits; save it as RGB")
        alpha = None
        if apart:
            array = np.stack([each.asarray() for each in file.series], axis=-1)
        elif stack is not None:
            array, axes = series.asarray(), series.axes
            for axis in other.keys() - {stack}:
                array, axes = array.take(0, axis=axes.index(axis)), axes.replace(axis, "")
            array = array.transpose([axes.index(axis) for axis in ("Y", "X", stack)])
        else:
            array = page.asarray().reshape(page.shaped)[:, 0]  # (samples or 1, H, W, 1 or samples)
            array = array[0] if page.shaped[0] == 1 else array[..., 0].transpose(1, 2, 0)
            if channels in (1, 3) and page.extrasamples[-1:] in ((EXTRASAMPLE.ASSOCALPHA,), (EXTRASAMPLE.UNASSALPHA,)):
                array, alpha = array[..., :-1], array[..., -1:]
        missing = no_data(array, named)
        if alpha is not None and page.extrasamples[-1:] == (EXTRASAMPLE.ASSOCALPHA,):
            array = _divided(array, alpha)
        if inverted and array.dtype.kind != "u":
            raise ValueError(f"its white is declared to be 0, but {array.dtype} has no value for black")
        array = np.iinfo(array.dtype).max - array if inverted else array
        orientation = page.tags.get(_ORIENTATION)
        return _picture_of(name, array, missing, 1 if orientation is None else int(orientation.value))


def _is_stack(series: Sequence[Any], channels: int) -> bool:
    """Whether the images of a TIFF are planes of one picture: as many as channels, and all alike."""
    first = series[0]
    alike = all((each.shape, each.dtype) == (first.shape, first.dtype) for each in series)
    return len(series) == channels > 1 and alike and first.axes == "YX"


def _divided(colours: Array, alpha: Array) -> Array:
    """Colours ``(H, W, C)`` that were multiplied by alpha ``(H, W, 1)``, as they were before."""
    floats = colours.dtype.kind == "f"
    full = 1.0 if floats else float(np.iinfo(colours.dtype).max)
    divided = colours * (full / np.where(alpha > 0, alpha, full))
    return (divided if floats else np.rint(np.minimum(divided, full))).astype(colours.dtype)


def _named_by(tag: Any) -> tuple[float, ...]:
    """The no-data value of a GDAL_NODATA tag."""
    if tag is None:
        return ()
    try:
        return (float(str(tag.value).strip("\0 ").replace(",", ".")),)
    except ValueError:
        raise ValueError(f"its GDAL_NODATA tag is not a number: {tag.value!r}") from None


def _numpy(data: bytes, channels: int) -> Array:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise ValueError(f"its shape is {array.shape}; (H, W), (H, W, C) and (C, H, W) are supported")
    for count in (channels, 1, 3) if channels in (1, 3) else (channels,):
        if array.shape[2] == count:
            break
        if array.shape[0] == count:
            array = array.transpose(1, 2, 0)
            break
    else:
        raise ValueError(
            f"its shape is {array.shape}, but {channels} channels were requested; "
            "set model_options.channels to pretrain with another number"
        )
    _check_size(*array.shape[:2])
    return array


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"it has {height} x {width} pixels; at most {MAX_PIXELS:,} are supported")
    if height * width == 0:
        raise ValueError(f"it has {height} x {width} pixels")
