"""Mixing of feature maps as the launcher would ask for it."""

from collections.abc import Iterator
from dataclasses import dataclass

from crossmae_kernels.audit.case import ITEM_SIZES, Case
from crossmae_kernels.audit.compilation import SHARED_MEMORY
from crossmae_kernels.feature_mixing.config import NUM_WARPS, forward_stages, held, tiles


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
    """Both kernels for every model; in 16 bits for ViT-B also with maps in float32, as autocast has them."""
    # In float32 ViT-S has ViT-B's kernels, and the gradients of more than 32 maps spill: right, but slow.
    for shape in SHAPES if dtype != "fp32" else SHAPES[1:3]:
        for kernel in ("mixing_forward", "mixing_backward"):
            yield case(kernel, arch, dtype, dtype, shape)
    if dtype == "bf16":
        for kernel in ("mixing_forward", "mixing_backward"):
            yield case(kernel, arch, dtype, "fp32", SHAPES[1])


def case(kernel: str, arch: int, dtype: str, dtype_of_maps: str, shape: Shape) -> Case:
    """One kernel at one shape."""
    choice = tiles(shape.mixes, shape.width, ITEM_SIZES[dtype])
    on_chip = held(shape.mixes, shape.width, ITEM_SIZES[dtype], kernel == "mixing_backward")
    stages = 1
    if on_chip and kernel == "mixing_forward":
        stages = forward_stages(shape.maps, shape.width, ITEM_SIZES[dtype_of_maps], SHARED_MEMORY[arch])
    return Case(
        kernel=f"crossmae_kernels.feature_mixing.kernels:{kernel}",
        label=f"{shape.model}, {shape.maps} maps of {shape.width}" + ", fp32 maps" * (dtype != dtype_of_maps),
        arch=arch,
        dtype=dtype,
        pointers={
            "maps": (dtype_of_maps,) * shape.maps,
            "dmaps": dtype_of_maps,
            **dict.fromkeys(("weight", "out", "dout"), dtype),
            **dict.fromkeys(("means", "rstds", "dweight"), "fp32"),
        },
        scalars={"eps": "fp32"},
        constants={
            "MAPS": shape.maps,
            "NORMALIZE": on_chip,
            "BLOCK_MIXES": choice.mixes,
            "SLICES": NUM_WARPS,
            "CHANNELS": choice.channels,
            "PANELS": choice.panels(shape.width) if on_chip else 1,
            "ALIGNED": True,
        },
        warps=NUM_WARPS,
        stages=stages,
        tensor_cores=dtype != "fp32",
        by_warp=True,
        store_bits=128,
    )
