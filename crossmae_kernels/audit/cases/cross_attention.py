"""Cross-attention as the launcher would ask for it."""

from collections.abc import Iterator
from typing import get_args

from crossmae_kernels.audit.case import ITEM_SIZES, Case, element, precision
from crossmae_kernels.audit.compilation import SHARED_MEMORY
from crossmae_kernels.cross_attention.config import Kernel, fits_on_chip, padded, tiles

# Decoder and encoder of ViT-B and smaller; ViT-H's encoder; the widest.
HEAD_WIDTHS = (32, 64, 80, 128)

# Visible patches and class token at 224 px with patches of 16 and 14, and at 448 px.
KEYS = (50, 65, 197)

# As many as fill a tile.
QUERIES = 147

HEADS = 16


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """Every kernel at every width it serves."""
    for head_width in HEAD_WIDTHS:
        short = [keys for keys in KEYS if fits_on_chip(keys, head_width, ITEM_SIZES[dtype])]
        for kernel in get_args(Kernel):
            # The looped kernels are the same for any number of keys.
            for keys in short if kernel.startswith("short") else [max(KEYS)]:
                yield case(kernel, arch, dtype, head_width, keys)
    # The forms that gather, and that address more than 2^31 elements, where most of the training is done.
    if (arch, dtype) == (90, "bf16"):
        for kernel in get_args(Kernel):
            keys = min(KEYS) if kernel.startswith("short") else max(KEYS)
            yield case(kernel, arch, dtype, 32, keys, gathered=True)
            yield case(kernel, arch, dtype, 32, keys, wide_offsets=True)


def case(
    kernel: Kernel,
    arch: int,
    dtype: str,
    head_width: int,
    keys: int,
    gathered: bool = False,
    wide_offsets: bool = False,
) -> Case:
    """One kernel at one shape."""
    # Queries of their own, keys and values packed.
    row = HEADS * head_width
    row_strides = {"DQ_ROW": row, "DKV_ROW": 2 * row}
    taken = {
        "short_backward": ("DQ_ROW", "DKV_ROW"),
        "looped_backward_query": ("DQ_ROW",),
        "looped_backward_key": ("DKV_ROW",),
    }
    choice = tiles(kernel, QUERIES, keys, head_width, ITEM_SIZES[dtype], SHARED_MEMORY[arch], precision(dtype))
    return Case(
        kernel=f"crossmae_kernels.cross_attention.kernels:{kernel}",
        label=f"width {head_width}, keys {keys}" + ", gathered" * gathered + ", 64-bit offsets" * wide_offsets,
        arch=arch,
        dtype=dtype,
        pointers=dict.fromkeys(("q", "k", "v", "out", "dout", "dq", "dk", "dv"), element(dtype))
        | {"ids": "i64", "lse": "fp32", "delta": "fp32"},
        constants={
            "HEADS": HEADS,
            "HEAD_DIM": head_width,
            "BLOCK_Q": choice.block_q,
            "BLOCK_K": choice.block_k,
            "BLOCK_D": padded(head_width),
            "WIDE": wide_offsets,
            "PRECISION": precision(dtype),
            **{name: row_strides[name] for name in taken.get(kernel, ())},
            **({} if gathered else {"ids": None}),
        },
        warps=choice.num_warps,
        stages=choice.num_stages,
        # float32 is not rounded to what tensor cores take, unless as TF32.
        tensor_cores=dtype != "fp32",
    )
