"""The passes over rows and the products of the projections, as their launchers would ask for them."""

from collections.abc import Iterator
from dataclasses import asdict

from crossmae_kernels.audit.case import ITEM_SIZES, Case, element, precision
from crossmae_kernels.audit.compilation import SHARED_MEMORY
from crossmae_kernels.primitives.gelu import BLOCK_M, BLOCK_N, NUM_WARPS
from crossmae_kernels.primitives.tiles import GROUP, gemm_tiles, row_tiles

# Encoder of ViT-B, which is no power of two.
WIDTH = 768


def cases(arch: int, dtype: str) -> Iterator[Case]:
    """Every kernel, with a residual stream in float32; in TF32 those that multiply."""
    yield from products(arch, dtype)
    if dtype == "tf32":
        return
    for kernel in (
        "primitives.normalization:normalize_kernel",
        "primitives.normalization:normalize_backward_kernel",
        "projection.kernels:add_residual",
    ):
        yield pass_over_rows(arch, dtype, kernel)
    yield Case(
        kernel="crossmae_kernels.primitives.gelu:gelu_backward_kernel",
        label="width 2048",
        arch=arch,
        dtype=dtype,
        pointers=dict.fromkeys(("dactivated", "hidden", "dhidden", "activated"), dtype) | {"sums": "fp32"},
        constants={"WIDTH": 2048, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N},
        warps=NUM_WARPS,
    )


def products(arch: int, dtype: str) -> Iterator[Case]:
    """Tiles of 128, 64 and 32 columns, the last with widths that tiles do not divide."""
    yield product(arch, dtype, 2048, 512, "gelu")
    yield product(arch, dtype, 512, 512, "table")
    yield product(arch, dtype, 192, 768, "residual")
    yield product(arch, dtype, 96, 200, "residual")


def pass_over_rows(arch: int, dtype: str, kernel: str) -> Case:
    """A pass between the residual stream and what products take and give."""
    choice = row_tiles(WIDTH)
    return Case(
        kernel=f"crossmae_kernels.{kernel}",
        label=f"width {WIDTH}",
        arch=arch,
        dtype=dtype,
        pointers=dict.fromkeys(("rstd", "dx", "dresidual", "residual", "out"), "fp32")
        | {"x": dtype if kernel.endswith("add_residual") else "fp32", "x_hat": dtype, "dx_hat": dtype, "ids": "i64"},
        constants={"WIDTH": WIDTH, "BLOCK_ROWS": choice.block_rows, "BLOCK_COLUMNS": choice.block_columns},
        warps=choice.num_warps,
        scalars={"eps": "fp32"},
    )


def product(arch: int, dtype: str, outer: int, inner: int, epilogue: str) -> Case:
    """The product with a bias and GELU, kept input included, or with a bias and a residual of which rows are picked."""
    choice = gemm_tiles(outer, inner, ITEM_SIZES[dtype], SHARED_MEMORY[arch])
    absent = {"gelu": ("residual", "ids"), "residual": ("hidden", "ids"), "table": ("hidden",)}[epilogue]
    sizes = asdict(choice)
    return Case(
        kernel="crossmae_kernels.primitives.gemm:gemm_kernel",
        label=f"{inner} to {outer}, {epilogue}",
        arch=arch,
        dtype=dtype,
        pointers=dict.fromkeys(("a", "weight", "bias", "hidden"), element(dtype))
        | {"residual": "fp32", "ids": "i64", "out": element(dtype) if epilogue == "gelu" else "fp32"},
        constants={name.upper(): size for name, size in sizes.items() if name.startswith("block")}
        | {"OUTER": outer, "INNER": inner, "GELU": epilogue == "gelu", "GROUP": GROUP, "PRECISION": precision(dtype)}
        | dict.fromkeys(absent),
        warps=choice.num_warps,
        stages=choice.num_stages,
        # float32 is not rounded to what tensor cores take, unless as TF32.
        tensor_cores=dtype != "fp32",
    )
