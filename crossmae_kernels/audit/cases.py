"""Launches to be compiled, and what the outcome must satisfy."""

import importlib.util
import pkgutil
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from triton.runtime.jit import JITFunction

from crossmae_kernels import primitives
from crossmae_kernels.audit.calls import CALLS, DTYPES
from crossmae_kernels.audit.compilation import Assembly
from crossmae_kernels.audit.devices import USUAL, AmdDevice, Device
from crossmae_kernels.audit.recording import Launch, record
from crossmae_kernels.runtime.operators import NAMESPACE
from crossmae_kernels.testing import Draw

# A batch on one GPU, as in the recipes. The number of rows is no constant of a kernel, so the code is that of any.
IMAGES = 256

# Bits of the widest store that the layout allows, where it is looked at.
STORE_BITS = {
    "fold_backward_kernel": 128,
    "fold_forward_kernel": 64,
    "mixing_backward_kernel": 128,
    "mixing_forward_kernel": 128,
    "sums_backward_kernel": 128,
}


@dataclass(frozen=True)
class Case:
    """A launch, and the problem that it helps to solve. Plain values: it goes to other processes."""

    label: str
    device: Device | AmdDevice
    dtype: str
    launch: Launch


def cases(
    ops: Sequence[str] = tuple(CALLS),
    devices: Sequence[Device | AmdDevice] = tuple(USUAL.values()),
    dtypes: Sequence[str] = tuple(DTYPES),
    images: int = IMAGES,
) -> list[Case]:
    """Every launch of the given ops, devices and dtypes, once, on so many images."""
    return [case for device in devices for dtype in dtypes for case in _recorded(ops, device, dtype, images)]


def _recorded(ops: Sequence[str], device: Device | AmdDevice, dtype: str, images: int) -> list[Case]:
    """Those of a device and a dtype. In TF32 only kernels that multiply differ from float32's."""
    found: list[Case] = []
    with record(device.limits) as launches, _multiplied_in(dtype):
        draw = Draw()
        for op in ops:
            # What changes the code a little is asked for where most of the training is done.
            for call in CALLS[op](draw, images, dtype, (device.limits.capability, dtype) == (90, "bf16")):
                launches.clear()
                call.run(DTYPES[dtype])
                for launch in launches:
                    known = any(launch == case.launch for case in found)
                    if not known and (dtype != "tf32" or "PRECISION" in launch.named_constants):
                        found.append(Case(call.problem.label, device, dtype, launch))
    return found


def kernel_names() -> list[str]:
    """Names of all kernels, without recording who launches them."""
    folders = [f"{NAMESPACE}.{op}" for op in CALLS]
    modules = [f"{folder}.kernels" for folder in folders if importlib.util.find_spec(f"{folder}.kernels")]
    modules += [found.name for found in pkgutil.iter_modules(primitives.__path__, f"{primitives.__name__}.")]
    functions = [value for name in modules for value in vars(importlib.import_module(name)).values()]
    found = {function.__name__ for function in functions if isinstance(function, JITFunction)}
    return sorted(name for name in found if name.endswith("_kernel"))


def first_of_each_kernel(chosen: Sequence[Case]) -> list[Case]:
    """Of each kernel, device and dtype the first case."""
    found: dict[tuple[str, str, str], Case] = {}
    for case in chosen:
        found.setdefault((case.launch.name, case.device.name, case.dtype), case)
    return list(found.values())


@contextmanager
def _multiplied_in(dtype: str) -> Iterator[None]:
    """Let PyTorch multiply float32 in TF32 or exactly until the block ends."""
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def required_bits(launch: Launch) -> tuple[int, int]:
    """Width of the widest load that the layout allows, and of the widest store where it is looked at."""
    constants = launch.named_constants
    if launch.name == "loss_backward_kernel":
        line = _line_bits(constants["VALUES"], launch.signature["difference"])
        return line, line
    if launch.name == "gather_backward_kernel":
        # Rows of three channels are read one value at a time, side by side; ids have 64 bits. Of rows of pixels Triton
        # knows where they begin if 16 divides their distance.
        known = launch.numbers["row_stride"] % 16 == 0
        return 64, _line_bits(constants["PATCH_W"], launch.signature["dimages"]) if known else 0
    if "PATCH_W" in constants:
        return max(64, _line_bits(constants["PATCH_W"], launch.signature["images"])), 0
    widths = constants.get("INNER", 16), constants.get("WIDTH", 16), launch.numbers.get("width", 16)
    if any(width % 16 for width in widths):
        return 0, 0  # nothing is known of where rows begin
    return 128, STORE_BITS.get(launch.name, 0)


def _line_bits(length: int, pointer: str) -> int:
    """Widest access to dense lines of so many elements, which begin where their length allows."""
    return min(128, (length & -length) * int(re.sub(r"\D", "", pointer)))


def shortcomings(case: Case, assembly: Assembly) -> list[str]:
    """What a compiled kernel lacks: everything in registers, room in shared memory, tensor cores, wide accesses."""
    limit = case.device.limits.shared_memory
    lacking = []
    if assembly.spilled:
        lacking.append(f"{assembly.spilled} instructions spill registers")
    elif assembly.spilled is None and assembly.stack:
        lacking.append(f"{assembly.stack} bytes of each thread's registers are spilled")
    if assembly.shared > limit:
        lacking.append(f"{assembly.shared} bytes of shared memory, {limit} are there")
    if assembly.tensor_core is None or assembly.widest_load is None or assembly.widest_store is None:
        return lacking  # without a disassembler
    # The lanes of AMD's warps are twice as many, and half the width fills as many lines.
    load, store = (0, 0) if isinstance(case.device, AmdDevice) else required_bits(case.launch)
    # float32 is not rounded to what tensor cores take, unless as TF32, of which tiles may have fewer rows than Hopper's
    # own instructions ask. Where each warp multiplies on its own, in 3D, Hopper and Blackwell have Ampere's.
    rounded = [product for product in assembly.products if not product.endswith("ieee")]
    hopper = case.device.limits.capability == 90 and any(product in ("2D bf16", "2D f16") for product in rounded)
    if rounded and (not assembly.tensor_core or (hopper and "HGMMA" not in assembly.tensor_core)):
        lacking.append(f"tensor-core instructions are {assembly.tensor_core or 'none'}")
    if assembly.widest_load < load:
        lacking.append(f"loads of {assembly.widest_load} bits at most")
    if assembly.widest_store < store:
        lacking.append(f"stores of {assembly.widest_store} bits at most")
    return lacking
