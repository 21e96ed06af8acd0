"""The kernels and configurations that ship, as the launchers would ask for them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch

from crossmae_kernels.audit.compilation import SHARED_MEMORY, Assembly, compile_kernel
from crossmae_kernels.common.segmented_sum import kernels as segmented_sum
from crossmae_kernels.cross_attention import kernels as cross_attention
from crossmae_kernels.cross_attention.config import Kernel, fits_on_chip, padded, tiles

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Decoder and encoder of ViT-B and smaller; ViT-H's encoder; the widest.
HEAD_WIDTHS = (32, 64, 80, 128)

# Visible patches and class token at 224 px with patches of 16 and 14, and at 448 px.
KEYS = (50, 65, 197)


@dataclass(frozen=True)
class Case:
    """One compilation."""

    kernel: str
    arch: int
    dtype: str
    head_width: int
    queries: int
    keys: int
    gathered: bool = False
    wide_offsets: bool = False
    constants: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def multiplies_matrices(self) -> bool:
        """Whether tensor cores are to be used; float32 is not rounded to what they take."""
        return self.dtype != "fp32" and self.kernel != "segmented_sum_kernel"

    def compile(self) -> Assembly:
        """Compile it."""
        if self.kernel == "segmented_sum_kernel":
            blocks = {"BLOCK_ROWS": segmented_sum.BLOCK_ROWS, "BLOCK_COLUMNS": segmented_sum.BLOCK_COLUMNS}
            elements = {"rows": self.dtype, "order": "i64", "starts": "i64", "out": self.dtype}
            return compile_kernel(segmented_sum.segmented_sum_kernel, elements, blocks, self.arch, warps=4, stages=3)
        choice = tiles(
            _name(self.kernel),
            self.queries,
            self.keys,
            self.head_width,
            DTYPES[self.dtype].itemsize,
            SHARED_MEMORY[self.arch],
        )
        constants = {
            "HEADS": 16,
            "HEAD_DIM": self.head_width,
            "BLOCK_Q": choice.block_q,
            "BLOCK_K": choice.block_k,
            "BLOCK_D": padded(self.head_width),
            "WIDE": self.wide_offsets,
            **({} if self.gathered else {"ids": None}),
        }
        elements = dict.fromkeys(("q", "k", "v", "out", "dout", "dq", "dk", "dv"), self.dtype)
        elements |= {"ids": "i64", "lse": "fp32", "delta": "fp32"}
        kernel = getattr(cross_attention, self.kernel)
        return compile_kernel(kernel, elements, constants, self.arch, choice.num_warps, choice.num_stages)


def cases(
    architectures: tuple[int, ...] = tuple(SHARED_MEMORY),
    dtypes: tuple[str, ...] = tuple(DTYPES),
    head_widths: tuple[int, ...] = HEAD_WIDTHS,
    keys: tuple[int, ...] = KEYS,
) -> Iterator[Case]:
    """Every kernel at every combination it serves, with as many queries as fill a tile."""
    for arch in architectures:
        for dtype in dtypes:
            yield Case("segmented_sum_kernel", arch, dtype, 0, 0, 0)
            for head_width in head_widths:
                seen = set()
                for count in keys:
                    on_chip = fits_on_chip(count, head_width, DTYPES[dtype].itemsize)
                    for kernel in get_args(Kernel):
                        if kernel.startswith("short") != on_chip or (not on_chip and kernel in seen):
                            continue
                        seen.add(kernel)
                        yield Case(kernel, arch, dtype, head_width, 147, count)


def _name(kernel: str) -> Kernel:
    names: tuple[Kernel, ...] = get_args(Kernel)
    return names[names.index(kernel)]  # type: ignore[arg-type]
