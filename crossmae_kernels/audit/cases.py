"""The kernels and configurations that ship, as the launchers would ask for them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch

from crossmae_kernels.audit.compilation import SHARED_MEMORY, Assembly, CompilationError, compile_kernel
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

    kernel: Kernel | Literal["segmented_sum_kernel"]
    arch: int
    dtype: str
    head_width: int
    queries: int
    keys: int
    gathered: bool = False
    wide_offsets: bool = False

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
            self.kernel,
            self.queries,
            self.keys,
            self.head_width,
            DTYPES[self.dtype].itemsize,
            SHARED_MEMORY[self.arch],
        )
        constants: dict[str, object] = {
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


def shortcomings(case: Case, assembly: Assembly) -> list[str]:
    """What a compiled kernel lacks: everything in registers, room in shared memory, tensor cores, wide loads."""
    limit = SHARED_MEMORY[case.arch]
    lacking = []
    if assembly.spilled:
        lacking.append(f"{assembly.spilled} instructions spill registers")
    if assembly.shared > limit:
        lacking.append(f"{assembly.shared} bytes of shared memory, {limit} are there")
    if case.multiplies_matrices:
        needed = "HGMMA" if case.arch == 90 else "HMMA" if case.arch < 90 else None
        if not assembly.tensor_core or (needed and needed not in assembly.tensor_core):
            lacking.append(f"tensor-core instructions are {assembly.tensor_core or 'none'}")
    if assembly.widest_load < 128:
        lacking.append(f"loads of {assembly.widest_load} bits at most")
    return lacking


def report(case: Case) -> dict[str, object]:
    """Case, assembly and shortcomings as one flat record."""
    try:
        assembly = case.compile()
    except CompilationError as error:
        return {**asdict(case), "shortcomings": [str(error)]}
    return {**asdict(case), **asdict(assembly), "shortcomings": shortcomings(case, assembly)}


def cases(
    architectures: Sequence[int] = tuple(SHARED_MEMORY),
    dtypes: Sequence[str] = tuple(DTYPES),
    head_widths: Sequence[int] = HEAD_WIDTHS,
) -> list[Case]:
    """Every kernel at every combination it serves, with as many queries as fill a tile."""
    found = []
    for arch in architectures:
        for dtype in dtypes:
            found.append(Case("segmented_sum_kernel", arch, dtype, 0, 0, 0))
            for head_width in head_widths:
                short = [n for n in KEYS if fits_on_chip(n, head_width, DTYPES[dtype].itemsize)]
                for kernel in get_args(Kernel):
                    # The looped kernels are the same for any number of keys.
                    counts = short if kernel.startswith("short") else [max(KEYS)]
                    found += [Case(kernel, arch, dtype, head_width, 147, keys) for keys in counts]
    # The forms that gather, and that address more than 2^31 elements, where most of the training is done.
    for arch in (90,) if 90 in architectures and "bf16" in dtypes else ():
        for kernel in get_args(Kernel):
            keys = min(KEYS) if kernel.startswith("short") else max(KEYS)
            found += [
                Case(kernel, arch, "bf16", 32, 147, keys, gathered=True),
                Case(kernel, arch, "bf16", 32, 147, keys, wide_offsets=True),
            ]
    return found
