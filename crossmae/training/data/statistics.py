"""Mean and standard deviation of pixels."""

import torch

from crossmae.training.data.dataset import Images


def pixel_statistics(dataset: Images, images: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over ``images`` evenly spread images, as shares of 255 for uint8.

    A channel that is the same everywhere gets a deviation of 1, by which one may divide.
    """
    scale = 255.0 if dataset.dtype == torch.uint8 else 1.0
    total, squares = (torch.zeros(dataset.channels, dtype=torch.float64) for _ in range(2))
    places = spread(len(dataset), images)
    for index in places:
        pixels = dataset[index].image.double() / scale
        total += pixels.mean(dim=(1, 2))
        squares += pixels.square().mean(dim=(1, 2))
    mean = total / len(places)
    deviation = (squares / len(places) - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0).tolist())


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` indices of ``length``, evenly spread and without repetition."""
    count = min(length, count)
    return [i * length // count for i in range(count)]
