"""Tile sizes of the mixing kernels: an analytic rule, and what does not fit."""

from dataclasses import dataclass

# Values of all mixes of a token that a program holds: 160 in each of 256 threads, two of 16 bits in a register.
MOST_VALUES = 32 * 1280


@dataclass(frozen=True)
class Tiles:
    """Configuration of one kernel."""

    mixes: int
    """Mixes of a token, padded."""
    channels: int
    """Channels of a warp in one panel."""
    num_warps: int
    keep: bool
    """Whether the backward pass keeps rows of the first maps on chip, or reads them twice."""
    num_stages: int = 1

    @property
    def panel(self) -> int:
        """Channels of one panel."""
        return self.channels * self.num_warps


def padded(count: int) -> int:
    """The extent that holds ``count``: a power of two, at least 16 as matrix instructions ask."""
    return max(16, 1 << (count - 1).bit_length())


def tiles(mixes: int, width: int, element_size: int) -> Tiles:
    """The analytic choice for tokens of ``width`` channels.

    A row is cut into panels, and these need no power of two of them, so that 768 or 1280 channels waste no
    registers. Products of float32 run outside of the tensor cores, where a thread holds more operands at a time.
    """
    return Tiles(padded(mixes), 16 if element_size == 4 else 32, 4 if width <= 512 else 8, width <= 1024)


def size_refusals(mixes: int, width: int) -> list[str]:
    """Why a token's mixes do not fit on chip, if they do not."""
    values = padded(mixes) * width
    if values <= MOST_VALUES:
        return []
    return [f"kernels take up to {MOST_VALUES} values of all mixes of a token, {mixes} (padded) x {width} are {values}"]
