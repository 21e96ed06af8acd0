"""The pass behind the library's product: a residual, dense or gathered."""

# Compile-time arguments are in capitals, and nothing is annotated but them, as everywhere in the field.
# ruff: noqa: N803
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows", "table_rows"])
def add_residual(
    x, residual, ids, out, residual_row, num_rows, table_rows,
    WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out = x + residual``, summed in float32; ``ids`` as for the product with an epilogue. Program: whole rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    mask = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    offsets = rows[:, None] * WIDTH + columns[None, :]
    tile = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if ids is None:
        added = tl.load(residual + rows[:, None] * residual_row + columns[None, :], mask=mask, other=0.0)
    else:
        picked = tl.load(ids + rows, mask=rows < num_rows, other=0).to(tl.int64)
        known = (picked >= 0) & (picked < table_rows)
        places = residual + picked[:, None] * residual_row + columns[None, :]
        added = tl.load(places, mask=mask & known[:, None], other=0.0)
        added = tl.where(known[:, None], added, float("nan"))
    tl.store(out + offsets, (tile + added.to(tl.float32)).to(out.dtype.element_ty), mask=mask)
