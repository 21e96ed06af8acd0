"""The patch kernels as their launchers would ask for them."""

from collections.abc import Iterator

from crossmae_kernels.audit.case import Case
from crossmae_kernels.patches.config import VARIANCE_EPS, padded, tile_size, tiles
from crossmae_kernels.patches.launch import BLOCK_IDS

# Channels and side of a patch: ViT-S to ViT-L, ViT-H, many channels, the largest that is served.
PATCHES = ((3, 16), (3, 14), (7, 16), (4, 64))


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """Every kernel on images and rows of one dtype; where most of the training is done, also on other pixels."""
    for channels, patch in PATCHES:
        for kernel in ("gather_forward", "gather_backward", "loss_forward", "loss_backward"):
            yield case(kernel, arch, dtype, channels, patch)
    if dtype == "bf16":
        for kernel in ("gather_forward", "loss_forward"):
            yield case(kernel, arch, dtype, 3, 16, pixels="fp32")
            yield case(kernel, arch, dtype, 3, 16, pixels="u8")
            yield case(kernel, arch, dtype, 3, 16, wide_offsets=True)


def case(
    kernel: str, arch: int, dtype: str, channels: int, patch: int, pixels: str = "", wide_offsets: bool = False
) -> Case:
    """One kernel at one shape; pixels of the dtype of the rows unless said otherwise."""
    values = patch * patch * channels
    size = padded(values) if kernel == "loss_backward" else tile_size(channels, patch)
    choice = tiles(size)
    if kernel == "loss_backward":
        constants: dict[str, object] = {"VALUES": values, "BLOCK": size, "PATCHES": choice.patches}
    else:
        constants = {
            "CHANNELS": channels, "PATCH": patch, "BLOCK_C": padded(channels), "BLOCK_P": padded(patch),
            "WIDE": wide_offsets,
        }  # fmt: skip
        constants |= {"BLOCK_IDS": BLOCK_IDS} if kernel == "gather_backward" else {"PATCHES": choice.patches}
        constants |= {"NORMALIZE": True, "EPS": VARIANCE_EPS} if kernel == "loss_forward" else {}
        if kernel != "gather_backward":
            # Pixels of a line lie side by side.
            constants["column_stride"] = 1
            constants |= {} if pixels == "u8" else {"mean": None, "std": None}
    rows = ("out", "dout", "dimages", "prediction", "difference", "dprediction")
    floats = ("mean", "std", "losses", "upstream")
    return Case(
        kernel=f"crossmae_kernels.patches.kernels:{kernel}",
        label=f"{channels} x {patch} x {patch}" + f", {pixels} pixels" * bool(pixels) + ", 64-bit" * wide_offsets,
        arch=arch,
        dtype=dtype,
        pointers={
            **dict.fromkeys(rows, dtype),
            **dict.fromkeys(floats, "fp32"),
            "images": pixels or dtype,
            "ids": "i64",
        },
        constants=constants,
        warps=choice.num_warps,
    )
