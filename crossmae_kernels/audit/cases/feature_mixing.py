"""Mixing of feature maps as the launcher would ask for it."""

from collections.abc import Iterator
from dataclasses import dataclass

from crossmae_kernels.audit.case import ITEM_SIZES, Case
from crossmae_kernels.feature_mixing.config import tiles


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
    for shape in SHAPES:
        for kernel in ("mixing_forward", "mixing_backward"):
            yield case(kernel, arch, dtype, dtype, shape)
    if dtype == "bf16":
        for kernel in ("mixing_forward", "mixing_backward"):
            yield case(kernel, arch, dtype, "fp32", SHAPES[1])


def case(kernel: str, arch: int, dtype: str, dtype_of_maps: str, shape: Shape) -> Case:
    """One kernel at one shape."""
    choice = tiles(shape.mixes, shape.width, ITEM_SIZES[dtype])
    # In float32 normalisation is a pass of its own.
    normalize = dtype != "fp32"
    return Case(
        kernel=f"crossmae_kernels.feature_mixing.kernels:{kernel}",
        label=f"{shape.model}, {shape.maps} maps of {shape.width}" + ", fp32 maps" * (dtype != dtype_of_maps),
        arch=arch,
        dtype=dtype,
        pointers={
            "maps": (dtype_of_maps,) * shape.maps,
            "dmaps": dtype_of_maps,
            **dict.fromkeys(("weight", "out", "dout"), dtype),
            **dict.fromkeys(("statistics", "dweight"), "fp32"),
        },
        constants={
            "MAPS": shape.maps,
            "NORMALIZE": normalize,
            **({"KEEP": normalize and choice.keep} if kernel == "mixing_backward" else {}),
            "BLOCK_MIXES": choice.mixes,
            "SLICES": choice.num_warps,
            "CHANNELS": choice.channels,
            "PANELS": -(-shape.width // choice.panel) if normalize else 1,
            "ALIGNED": True,
        },
        warps=choice.num_warps,
        stages=choice.num_stages,
        tensor_cores=dtype != "fp32",
    )
