"""Mixing of feature maps as the launcher would ask for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crossmae_kernels.audit.case import ITEM_SIZES, Case, element, precision
from crossmae_kernels.audit.compilation import SHARED_MEMORY
from crossmae_kernels.feature_mixing.config import (
    ALL_REGISTERS,
    NUM_WARPS,
    Tiles,
    backward_stages,
    backward_tiles,
    forward_registers,
    forward_stages,
    forward_tiles,
    held,
    holds_upstream_gradients,
)


@dataclass(frozen=True)
class Shape:
    """Maps of so many channels, to be mixed for so many decoder blocks."""

    model: str
    maps: int
    mixes: int
    width: int


SHAPES = (
    Shape("ViT-S", 13, 12, 384),
    Shape("ViT-B", 13, 12, 768),
    Shape("ViT-L", 25, 12, 1024),
    Shape("ViT-H", 33, 12, 1280),
)


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """Both directions for every model; in bfloat16 also with maps in float32, as autocast has them."""
    for shape in SHAPES:
        for dtype_of_maps in (dtype, "fp32") if dtype == "bf16" else (dtype,):
            yield forward_case(arch, dtype, dtype_of_maps, shape)
            yield backward_case(arch, dtype, dtype_of_maps, shape)


def forward_case(arch: int, dtype: str, dtype_of_maps: str, shape: Shape) -> Case:
    """The mixes, normalised where a program holds them."""
    size = ITEM_SIZES[dtype]
    choice = forward_tiles(shape.mixes, shape.width, size)
    on_chip = held(shape.mixes, shape.width, size)
    stages = 1
    if on_chip:
        stages = forward_stages(shape.maps, shape.width, ITEM_SIZES[dtype_of_maps], SHARED_MEMORY[arch])
    constants = {"NORMALIZE": on_chip, "PANELS": choice.panels(shape.width) if on_chip else 1}
    return _case("mixing_forward", arch, dtype, dtype_of_maps, shape, choice, constants, stages)


def backward_case(arch: int, dtype: str, dtype_of_maps: str, shape: Shape) -> Case:
    """The gradients, LayerNorm's among them where a program holds the mixes."""
    size = ITEM_SIZES[dtype]
    on_chip = held(shape.mixes, shape.width, size)
    choice = backward_tiles(shape.mixes, shape.width, size, on_chip)
    if not on_chip:
        return _case("sums_backward", arch, dtype, dtype_of_maps, shape, choice, {}, 1)
    hold_dout = holds_upstream_gradients(shape.mixes, shape.width, size)
    constants = {"PANELS": choice.panels(shape.width), "HOLD_DOUT": hold_dout}
    return _case("mixing_backward", arch, dtype, dtype_of_maps, shape, choice, constants, backward_stages(size))


def _case(
    kernel: str,
    arch: int,
    dtype: str,
    dtype_of_maps: str,
    shape: Shape,
    choice: Tiles,
    constants: dict[str, Any],
    stages: int,
) -> Case:
    return Case(
        kernel=f"crossmae_kernels.feature_mixing.kernels:{kernel}",
        label=f"{shape.model}, {shape.maps} maps of {shape.width}" + ", fp32 maps" * (dtype != dtype_of_maps),
        arch=arch,
        dtype=dtype,
        pointers={
            "maps": (element(dtype_of_maps),) * shape.maps,
            "dmaps": element(dtype_of_maps),
            **dict.fromkeys(("weight", "out", "dout"), element(dtype)),
            **dict.fromkeys(("means", "rstds", "dweight"), "fp32"),
        },
        scalars={"eps": "fp32"},
        constants={
            "MAPS": shape.maps,
            "BLOCK_MIXES": choice.mixes,
            "SLICES": NUM_WARPS,
            "CHANNELS": choice.channels,
            "ALIGNED": True,
            "PRECISION": precision(dtype),
            **constants,
        },
        warps=NUM_WARPS,
        stages=stages,
        registers=ALL_REGISTERS if kernel.endswith("backward") else forward_registers(ITEM_SIZES[dtype]),
        tensor_cores=dtype != "fp32",
        by_warp=True,
        store_bits=128,
    )
