"""The kernels of the MLP alone, as its launcher would ask for them; its products are among the projections'."""

from collections.abc import Iterator
from dataclasses import asdict

from crossmae_kernels.audit.case import ITEM_SIZES, Case, element, precision
from crossmae_kernels.audit.compilation import SHARED_MEMORY
from crossmae_kernels.mlp.config import block_width, hidden_tiles, single_tiles
from crossmae_kernels.primitives.tiles import GROUP

# Width and hidden width: ViT-B's decoder and ViT-S's, and what tiles do not divide.
LARGE, MEDIUM, ODD = (512, 2048), (256, 1024), (96, 200)


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """Every kernel in 16 bits, those without a chunk of their own in float32 too."""
    if ITEM_SIZES[dtype] == 2:
        for shape in (MEDIUM, ODD):
            yield single(arch, dtype, *shape, training=True)
        yield single(arch, dtype, *MEDIUM, training=False)
    for shape in (LARGE, ODD):
        yield backward(arch, dtype, *shape, recompute=True)
    yield backward(arch, dtype, *LARGE, recompute=False)


def single(arch: int, dtype: str, width: int, hidden: int, training: bool) -> Case:
    """The forward pass in one kernel."""
    choice = single_tiles(width)
    return Case(
        kernel="crossmae_kernels.mlp.kernels:single_forward",
        label=f"{width} x {hidden}, " + ("training" if training else "inference"),
        arch=arch,
        dtype=dtype,
        pointers=dict.fromkeys(("w1", "b1", "w2", "b2", "x_hat"), dtype) | dict.fromkeys(("x", "out", "rstd"), "fp32"),
        constants={"WIDTH": width, "HIDDEN": hidden, "hidden": None}
        | {"BLOCK_M": choice.block_m, "BLOCK_D": block_width(width), "BLOCK_H": choice.block_h}
        | ({} if training else {"x_hat": None, "rstd": None}),
        warps=choice.num_warps,
        stages=choice.num_stages,
        tensor_cores=True,
        scalars={"eps": "fp32"},
    )


def backward(arch: int, dtype: str, width: int, hidden: int, recompute: bool) -> Case:
    """The backward pass through the hidden layer."""
    choice = hidden_tiles(hidden, width, ITEM_SIZES[dtype], SHARED_MEMORY[arch])
    sizes = asdict(choice)
    return Case(
        kernel="crossmae_kernels.mlp.kernels:hidden_backward",
        label=f"{width} x {hidden}, " + ("recompute" if recompute else "save"),
        arch=arch,
        dtype=dtype,
        pointers=dict.fromkeys(("dout", "w1", "b1", "w2", "x_hat", "hidden", "dhidden", "activated"), element(dtype))
        | {"sums": "fp32"},
        constants={name.upper(): size for name, size in sizes.items() if name.startswith("block")}
        | {"WIDTH": width, "HIDDEN": hidden, "GROUP": GROUP, "PRECISION": precision(dtype)}
        | (dict.fromkeys(["hidden"]) if recompute else dict.fromkeys(("x_hat", "w1", "b1"))),
        warps=choice.num_warps,
        stages=choice.num_stages,
        tensor_cores=dtype != "fp32",
    )
