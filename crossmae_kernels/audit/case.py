"""One launch to be compiled for one architecture, and what is asked of the outcome."""

import re
from dataclasses import dataclass

from crossmae_kernels.audit.compilation import Assembly, CompilationError, compile_launch
from crossmae_kernels.audit.recording import Launch
from crossmae_kernels.runtime.device import Limits

# By compute capability, 90 for 9.0: shared memory that one program may have (CUDA programming guide, table of compute
# capabilities), and the multiprocessors of A100, A40, H100 and B200.
DEVICES = {
    80: Limits(163 * 1024, 108),
    86: Limits(99 * 1024, 84),
    90: Limits(227 * 1024, 132),
    100: Limits(227 * 1024, 148),
}

# Bits of the widest store that the layout allows, where it is looked at.
STORE_BITS = {
    "fold_backward": 128,
    "fold_forward": 64,
    "loss_backward": 128,
    "mixing_backward": 128,
    "mixing_forward": 128,
    "sums_backward": 128,
}


@dataclass(frozen=True)
class Case:
    """A launch, and the problem that is solved with it. Plain values: it goes to other processes."""

    op: str
    label: str
    """What tells the problem from the op's others."""
    arch: int
    dtype: str
    launch: Launch


def required_bits(launch: Launch) -> tuple[int, int]:
    """Width of the widest load and of the widest store that the layout allows."""
    load, store = 128, STORE_BITS.get(launch.name, 0)
    if "PATCH" in (constants := launch.named_constants):
        # Lines of a patch begin where its side allows. Rows of three channels are read and written one value at a time,
        # side by side; ids have 64 bits.
        side, pixels = constants["PATCH"], launch.signature.get("images") or launch.signature["dimages"]
        line = min(128, (side & -side) * int(re.sub(r"\D", "", pixels)))
        if launch.name == "gather_backward":
            return 64, line
        load = max(line, 64)
    return load, store


def shortcomings(case: Case, assembly: Assembly) -> list[str]:
    """What a compiled kernel lacks: everything in registers, room in shared memory, tensor cores, wide accesses."""
    limit = DEVICES[case.arch].shared_memory
    load, store = required_bits(case.launch)
    lacking = []
    if assembly.spilled:
        lacking.append(f"{assembly.spilled} instructions spill registers")
    if assembly.shared > limit:
        lacking.append(f"{assembly.shared} bytes of shared memory, {limit} are there")
    # float32 is not rounded to what tensor cores take, unless as TF32, of which tiles may have fewer rows than Hopper's
    # own instructions ask. Where each warp multiplies on its own, in 3D, Hopper and Blackwell have Ampere's.
    rounded = [product for product in assembly.products if not product.endswith("ieee")]
    hopper = case.arch == 90 and any(product in ("2D bf16", "2D f16") for product in rounded)
    if rounded and (not assembly.tensor_core or (hopper and "HGMMA" not in assembly.tensor_core)):
        lacking.append(f"tensor-core instructions are {assembly.tensor_core or 'none'}")
    if assembly.widest_load < load:
        lacking.append(f"loads of {assembly.widest_load} bits at most")
    if assembly.widest_store < store:
        lacking.append(f"stores of {assembly.widest_store} bits at most")
    return lacking


def report(case: Case) -> dict[str, object]:
    """Case, assembly and shortcomings as one flat record."""
    record = {"kernel": case.launch.name, "label": case.label, "arch": case.arch, "dtype": case.dtype}
    try:
        assembly = compile_launch(case.launch, case.arch)
    except CompilationError as error:
        return {**record, "shortcomings": [str(error)]}
    return {**record, **vars(assembly), "shortcomings": shortcomings(case, assembly)}
