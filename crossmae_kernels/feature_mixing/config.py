"""Tile sizes of the mixing kernels: an analytic rule, and where LayerNorm happens."""

from dataclasses import dataclass

# Values of all mixes of a token, padded, up to which a program holds them in registers: forward for ViT-H with 12
# decoder blocks; backward, where upstream gradients, mixes and maps are held together, for ViT-B.
MOST_VALUES_FORWARD = 16 * 1280
MOST_VALUES_BACKWARD = 16 * 768

NUM_WARPS = 8


@dataclass(frozen=True)
class Tiles:
    """Configuration of one kernel."""

    mixes: int
    """Mixes of a token, padded."""
    channels: int
    """Channels of a warp in one panel."""

    @property
    def panel(self) -> int:
        """Channels of one panel."""
        return self.channels * NUM_WARPS

    def panels(self, width: int) -> int:
        """Panels of a row."""
        return -(-width // self.panel)


def padded(count: int) -> int:
    """The extent that holds ``count``: a power of two, at least 16 as matrix instructions ask."""
    return max(16, 1 << (count - 1).bit_length())


def tiles(mixes: int, width: int, element_size: int) -> Tiles:
    """The analytic choice for tokens of ``width`` channels.

    A row is cut into panels, and these need no power of two of them, so that 384, 768 or 1280 channels waste no
    registers. Products of float32 run outside of the tensor cores, where a thread holds more operands at a time.
    """
    return Tiles(padded(mixes), 16 if element_size == 4 or width <= 512 else 32)


def held(mixes: int, width: int, element_size: int, backward: bool) -> bool:
    """Whether a program holds whole tokens, so that LayerNorm needs no pass of its own."""
    most = MOST_VALUES_BACKWARD if backward else MOST_VALUES_FORWARD
    return element_size == 2 and padded(mixes) * width <= most


def forward_stages(maps: int, width: int, element_size: int, shared_memory: int) -> int:
    """Depth of the forward kernel's pipeline: up to two tokens ahead, as far as their maps fit in shared memory.

    ``element_size`` is that of the maps. The backward kernels have no registers left to look ahead.
    """
    maps_of_a_token = padded(maps) * width * element_size
    scratch = 16 * 1024
    return 1 + max(0, min(2, (shared_memory - scratch) // maps_of_a_token))
