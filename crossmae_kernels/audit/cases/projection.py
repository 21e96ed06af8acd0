"""The passes over rows and the products of the projections, as their launchers would ask for them."""

from collections.abc import Iterator
from dataclasses import asdict

from crossmae_kernels.audit.case import ITEM_SIZES, Case
from crossmae_kernels.audit.compilation import SHARED_MEMORY
from crossmae_kernels.common.gelu.launch import BLOCK_M, BLOCK_N, NUM_WARPS
from crossmae_kernels.common.gemm.config import GROUP
from crossmae_kernels.common.gemm.config import tiles as gemm_tiles
from crossmae_kernels.common.normalization.config import tiles as row_tiles

# Decoders of ViT-S and ViT-B, encoders of ViT-B and ViT-L; what is no power of two among them.
WIDTHS = (96, 512, 768)

# Outer and inner width of products: tiles of 128, 64 and 32 columns, and what tiles do not divide.
PRODUCTS = ((512, 512), (192, 768), (96, 200))


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """Every kernel, with a residual stream in float32; once with one in 16 bits."""
    for width in WIDTHS:
        choice = row_tiles(width)
        constants = {"WIDTH": width, "BLOCK_ROWS": choice.block_rows, "BLOCK_COLUMNS": choice.block_columns}
        for name in ("normalize", "normalize_backward"):
            yield Case(
                kernel=f"crossmae_kernels.common.normalization.kernels:{name}",
                label=f"width {width}",
                arch=arch,
                dtype=dtype,
                pointers={"x": "fp32", "rstd": "fp32", "dx": "fp32", "dresidual": "fp32"}
                | {"x_hat": dtype, "dx_hat": dtype},
                constants=constants,
                warps=choice.num_warps,
                scalars={"eps": "fp32"},
            )
        yield Case(
            kernel="crossmae_kernels.projection.kernels:add_residual",
            label=f"width {width}",
            arch=arch,
            dtype=dtype,
            pointers={"x": dtype, "residual": "fp32", "ids": "i64", "out": "fp32"},
            constants=constants,
            warps=choice.num_warps,
        )
    yield Case(
        kernel="crossmae_kernels.common.gelu.kernels:gelu_backward",
        label="width 2048",
        arch=arch,
        dtype=dtype,
        pointers=dict.fromkeys(("dactivated", "hidden", "dhidden", "activated"), dtype) | {"sums": "fp32"},
        constants={"WIDTH": 2048, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N},
        warps=NUM_WARPS,
    )
    for outer, inner in PRODUCTS:
        yield product(arch, dtype, outer, inner, "gelu")
        yield product(arch, dtype, outer, inner, "residual")
    yield product(arch, dtype, 512, 512, "table")


def product(arch: int, dtype: str, outer: int, inner: int, epilogue: str) -> Case:
    """The product with a bias and GELU, kept input included, or with a bias and a residual of which rows are picked."""
    choice = gemm_tiles(outer, inner, ITEM_SIZES[dtype], SHARED_MEMORY[arch])
    absent = {"gelu": ("residual", "ids"), "residual": ("hidden", "ids"), "table": ("hidden",)}[epilogue]
    sizes = asdict(choice)
    return Case(
        kernel="crossmae_kernels.common.gemm.kernels:gemm",
        label=f"{inner} to {outer}, {epilogue}",
        arch=arch,
        dtype=dtype,
        pointers=dict.fromkeys(("a", "weight", "bias", "hidden"), dtype)
        | {"residual": "fp32", "ids": "i64", "out": dtype if epilogue == "gelu" else "fp32"},
        constants={name.upper(): size for name, size in sizes.items() if name.startswith("block")}
        | {"OUTER": outer, "INNER": inner, "GELU": epilogue == "gelu", "GROUP": GROUP}
        | dict.fromkeys(absent),
        warps=choice.num_warps,
        stages=choice.num_stages,
        # float32 is not rounded to what tensor cores take.
        tensor_cores=dtype != "fp32",
    )
