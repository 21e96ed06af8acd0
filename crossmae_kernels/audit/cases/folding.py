"""The fold of a norm into a linear layer as its launcher would ask for it."""

from collections.abc import Iterator

from crossmae_kernels.audit.case import Case
from crossmae_kernels.norm_folding.launch import BACKWARD_COLUMNS, BACKWARD_ROWS, forward_tile

# Decoder of ViT-B, its encoder, which is no power of two, and more than a program takes at a time.
WIDTHS = (512, 768, 1280)


# Weights at a time: a block's own, and the projections of as many decoder blocks as the released models have.
MATRICES = (1, 12)


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """Master weights in float32, folded to ``dtype``."""
    for matrices in MATRICES:
        shared = dict.fromkeys(("bias", "scale", "shift"), "fp32") | {"weights": ("fp32",) * matrices}
        for width in WIDTHS:
            block_rows, block_columns = forward_tile(width)
            yield Case(
                kernel="crossmae_kernels.norm_folding.kernels:fold_forward",
                label=f"width {width}, weights {matrices}",
                arch=arch,
                dtype=dtype,
                pointers=shared | {"folded": dtype, "folded_bias": dtype},
                constants={
                    "MATRICES": matrices,
                    "WIDTH": width,
                    "BLOCK_ROWS": block_rows,
                    "BLOCK_COLUMNS": block_columns,
                },
                store_bits=64,
            )
        yield Case(
            kernel="crossmae_kernels.norm_folding.kernels:fold_backward",
            label=f"width {WIDTHS[1]}, weights {matrices}",
            arch=arch,
            dtype=dtype,
            pointers=shared
            | dict.fromkeys(("dfolded", "dfolded_bias"), dtype)
            | dict.fromkeys(("dweight", "dscale", "dshift"), "fp32"),
            constants={
                "MATRICES": matrices,
                "WIDTH": WIDTHS[1],
                "BLOCK_ROWS": BACKWARD_ROWS,
                "BLOCK_COLUMNS": BACKWARD_COLUMNS,
            },
            store_bits=128,
        )
