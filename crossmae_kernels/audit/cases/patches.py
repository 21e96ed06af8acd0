"""The patch kernels as their launchers would ask for them."""

from collections.abc import Iterator

from crossmae_kernels.audit.case import ITEM_SIZES, Case
from crossmae_kernels.patches.config import VARIANCE_EPS, padded, tile_size, tiles
from crossmae_kernels.patches.launch import BLOCK_IDS

KERNELS = ("gather_forward", "gather_backward", "loss_forward", "loss_backward")


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """Every kernel for ViT-S to ViT-L; where most of the training is done also its other forms.

    In float16 they are what they are in bfloat16: nothing is multiplied by tensor cores.
    """
    if dtype == "fp16":
        return
    for kernel in KERNELS:
        yield case(kernel, arch, dtype, 3, 16)
    if (arch, dtype) == (90, "bf16"):
        for kernel in ("gather_forward", "loss_forward"):
            yield case(kernel, arch, dtype, 3, 14)
            yield case(kernel, arch, dtype, 3, 16, pixels="fp32")
            yield case(kernel, arch, dtype, 3, 16, pixels="u8")
            yield case(kernel, arch, dtype, 3, 16, wide_offsets=True)
    if (arch, dtype) == (86, "fp32"):
        # The largest patch that is served, where there is least shared memory.
        for kernel in KERNELS:
            yield case(kernel, arch, dtype, 4, 64)


def case(
    kernel: str, arch: int, dtype: str, channels: int, patch: int, pixels: str = "", wide_offsets: bool = False
) -> Case:
    """One kernel at one shape, on aligned images; pixels of the dtype of the rows unless said otherwise."""
    values = patch * patch * channels
    by_row = kernel == "loss_backward"
    size = padded(values) if by_row else tile_size(channels, patch)
    choice = tiles(size)
    constants: dict[str, object] = {"VALUES": values, "BLOCK": size}
    if not by_row:
        constants = {
            "CHANNELS": channels, "PATCH": patch, "BLOCK_C": padded(channels), "BLOCK_P": padded(patch),
            "WIDE": wide_offsets,
        }  # fmt: skip
    if kernel == "gather_backward":
        constants["BLOCK_IDS"] = BLOCK_IDS
    else:
        constants["PATCHES"] = choice.patches
    if kernel == "loss_forward":
        constants |= {"NORMALIZE": True, "EPS": VARIANCE_EPS}
    if kernel in ("gather_forward", "loss_forward"):
        # Pixels of a line lie side by side.
        constants |= {"column_stride": 1} if pixels == "u8" else {"column_stride": 1, "mean": None, "std": None}
    rows = ("out", "dout", "dimages", "prediction", "difference", "dprediction")
    pointers = {"images": pixels or dtype, "ids": "i64", **dict.fromkeys(rows, dtype)}
    pointers |= dict.fromkeys(("mean", "std", "losses", "upstream"), "fp32")
    # Rows of three channels are read and written one value at a time, side by side; ids have 64 bits.
    line = patch & -patch
    wide = min(128, line * 8 * ITEM_SIZES.get(pixels or dtype, 1))
    return Case(
        kernel=f"crossmae_kernels.patches.kernels:{kernel}",
        label=f"{channels} x {patch} x {patch}" + f", {pixels} pixels" * bool(pixels) + ", 64-bit" * wide_offsets,
        arch=arch,
        dtype=dtype,
        pointers=pointers,
        constants=constants,
        warps=choice.num_warps,
        load_bits=64 if kernel == "gather_backward" else max(wide, 64),
        store_bits=wide if kernel.endswith("backward") else 0,
    )
