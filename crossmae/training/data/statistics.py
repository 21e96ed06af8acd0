"""Statistics of a data set's pixels: number types, mean and standard deviation, missing data."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crossmae.model.config import Numbers
from crossmae.training.data.augmentation import centred
from crossmae.training.data.dataset import Images
from crossmae.training.data.sentinels import Channel
from crossmae.training.data.values import Picture, like_no_data

LOOKED_AT = 1000
DIM = 1 / 4  # of full scale; images that stay below hardly use it
# Limits for how much the given statistics may be off for deep images: the ratio of deviations, and the distance of the
# means in the images' own deviations. ImageNet's statistics, which recipes give, pass for 16-bit photographs (0.5 off)
# but not for 12 to 14 bits stored in 16: uniform 14-bit values deviate 3.2 times less, and their mean is 5 off.
FAR_OFF, MEAN_OFF = 8, 4


@dataclass
class _Type:
    """Images of one number type: how many, and the range of their values, per channel for deep images."""

    full: int | None
    floats: bool
    images: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    channels: dict[int, Channel] = field(default_factory=dict)


@dataclass(frozen=True)
class Survey:
    """Statistics of a sample of a data set's images.

    Attributes:
        dtype, numbers: as in ``DataConfig``.
        mean, std: of each channel, over valid data. A constant channel gets a deviation of 1, so one can divide by it.
        text: the statistics in words.
    """

    dtype: Literal["uint8", "float32"]
    numbers: Numbers
    mean: tuple[float, ...]
    std: tuple[float, ...]
    text: str


def survey(images: Images, count: int = LOOKED_AT) -> Survey:
    """Statistics of ``count`` evenly spaced images.

    Raises:
        ValueError: if they hold number types on different scales, a value that looks like no data, or a channel that
            float32 can hardly tell from a constant.
        UnreadableImage: if ``MAX_UNREADABLE`` in a row cannot be read, or any if ``images.strict``.
    """
    types: dict[str, _Type] = {}
    weight, total, squares = (torch.zeros(images.channels, dtype=torch.float64) for _ in range(3))
    unreadable: dict[str, None] = {}

    def read(place: int) -> tuple[Picture, Tensor]:
        picture = images.source.read(place, images.channels, images.image_size, images.nodata)
        return picture, picture.tensor(images.channels, images.dtype, images.numbers)

    places = evenly_spaced(len(images), count)
    for place in places:
        (picture, image), passed = images.first_readable(place, read)
        unreadable.update(dict.fromkeys(passed))
        _add(types, picture)
        if picture.missing is None:  # else full size: resizing would mix valid and missing data
            image = centred(image, images.image_size)
        pixels = image.double().flatten(1) / (255 if image.dtype == torch.uint8 else 1)
        known = pixels.isfinite()
        pixels = pixels.where(known, 0.0)
        weight += known.double().mean(dim=1)
        total += pixels.mean(dim=1)
        squares += pixels.square().mean(dim=1)
    if images.nodata is None:
        _refuse_sentinels(types)
    numbers = images.numbers or _numbers(types)
    missing = 1 - float(weight.mean()) / len(places)
    plain = set(types) <= {"uint8", "bool"} and numbers == "shares" and images.nodata is None and missing == 0
    dtype: Literal["uint8", "float32"] = "float32"
    if images.dtype == torch.uint8 or (plain and images.dtype is None):
        dtype = "uint8"
    mean = total / weight.clamp(min=1e-9)
    deviation = (squares / weight.clamp(min=1e-9) - mean.square()).clamp(min=0).sqrt()
    same = deviation <= 1e-6 * mean.abs()  # up to rounding, such as float32's 6e-8
    _refuse_hardly_varying(types, same.tolist())
    deviation = deviation.where(~same, 1.0)
    text = f"{_listed(types)} as {'shares of full scale' if numbers == 'shares' else 'they are'}, in {dtype}"
    if missing > 0:
        text += f"; no data in {missing:.2%} of the pixels, filled with the mean"
    if unreadable:
        text += f"; {len(unreadable):,} of the inspected images cannot be read, such as {next(iter(unreadable))}"
    return Survey(dtype, numbers, tuple(mean.tolist()), tuple(deviation.tolist()), text)


def _add(types: dict[str, _Type], picture: Picture) -> None:
    array = picture.values
    known = np.ones_like(array, np.bool_) if picture.missing is None else ~np.broadcast_to(picture.missing, array.shape)
    kind = types.setdefault(array.dtype.name, _Type(picture.full, array.dtype.kind == "f"))
    kind.images += 1
    kind.low, kind.high = min(kind.low, float(array[known].min())), max(kind.high, float(array[known].max()))
    if picture.full == 255:  # in pictures black and white are brightness, often far from the rest
        return
    for index in range(array.shape[2]):
        kind.channels.setdefault(index, Channel()).add(array[..., index][known[..., index]])


def _refuse_sentinels(types: dict[str, _Type]) -> None:
    """Refuse a value that may mark missing data."""
    for kind in types.values():
        for index, channel in kind.channels.items():
            sentinel = channel.sentinel()
            if sentinel is not None:
                value, share = sentinel
                raise ValueError(
                    f"{share:.2%} of channel {index}'s values lie far from all others, at {like_no_data(value)}"
                )


def _refuse_hardly_varying(types: dict[str, _Type], same: list[bool]) -> None:
    """Refuse a channel that is not constant but whose deviation is negligible against its mean."""
    for index, channel in [item for kind in types.values() for item in kind.channels.items()]:
        if index < len(same) and same[index] and channel.low < channel.high:
            raise ValueError(
                f"channel {index} of the images holds {channel.low:.9g} to {channel.high:.9g}, too close together for "
                "float32; subtract a common offset"
            )


def _numbers(types: dict[str, _Type]) -> Numbers:
    """Infer what the images' numbers mean, if no setting says so."""
    full = [kind.full for kind in types.values() if kind.full is not None]
    dim = any(kind.full > min(full) and kind.high < DIM * kind.full for kind in types.values() if kind.full is not None)
    mixed = 0 < len(full) < len(types) or len({kind.floats for kind in types.values()}) > 1
    if mixed or dim:
        raise ValueError(
            f"the images hold {_listed(types)}, which are on different scales; set data.numbers=values to compare the "
            "numbers as they are, or data.numbers=shares to compare shares of full scale (unsigned integers only)"
        )
    return "shares" if full else "values"


def _listed(types: dict[str, _Type]) -> str:
    ranges = [f"{name} from {kind.low:,.6g} to {kind.high:,.6g}" for name, kind in types.items()]
    return " and ".join(
        f"{text} ({kind.images:,} images)" if len(types) > 1 else text
        for text, kind in zip(ranges, types.values(), strict=True)
    )


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most ``count`` indices below ``length``, evenly spaced, without repetition."""
    count = min(length, count)
    return [i * length // count for i in range(count)]
