"""Which implementation runs each op on this machine, and why: ``python -m crossmae_kernels.info``.

Every op is called with tensors that have shapes but no data, so it checks and refuses as in training, but no kernel
runs.
"""

import functools
import os
import platform
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import crossmae_kernels as ck
from crossmae_kernels.command import OneLineParser, run_command
from crossmae_kernels.environment import IMPLEMENTATION, TUNING
from crossmae_kernels.extras import version
from crossmae_kernels.runtime import cpu_linear, dispatch, launch, tuning
from crossmae_kernels.runtime.device import KERNEL_DTYPES, interpreted, limits
from crossmae_kernels.testing import Draw, Problem
from crossmae_kernels.testing.problems import vit_base


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]


def call_kernels(op: str, device: torch.device, dtype: torch.dtype) -> None:
    """Call an op with ``impl="triton"`` at the shapes of ViT-B's decoder, with tensors without data."""
    mode, problems = _problems(device)
    with mode:
        problems[op].by("triton")(**problems[op].leaves(dtype))


@functools.cache
def _problems(device: torch.device) -> tuple[FakeTensorMode, dict[str, Problem]]:
    """One problem per op, and the fake mode of their tensors."""
    with FakeTensorMode() as mode:
        return mode, {problem.op: problem for problem in vit_base(Draw(device=device))}


def served_by(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Which implementation runs calls of an op with ``impl="auto"`` there, and why it is not the kernel."""
    refusals = []
    try:
        call_kernels(op, device, dtype)
    except RuntimeError as error:
        _, refusal, reasons = str(error).partition(dispatch.REFUSAL)
        if not refusal:
            raise
        refusals.append(reasons)
    try:
        chosen = dispatch.choose(op, "auto", refusals, worthwhile=device.type == "cuda")
    except RuntimeError:
        return f"none: {refusals[0]}"
    if chosen == "triton":
        return "triton"
    if dispatch.default() == "reference":
        return "reference: the process-wide default"
    return "reference: " + ("; ".join(refusals) or "on a CPU the interpreter runs kernels only when asked to")


def rows_of(device: torch.device) -> list[str]:
    """For each op, one line per group of dtypes with the same implementation."""
    lines = []
    for op in ck.__all__:
        by_answer: dict[str, list[str]] = {}
        for dtype in KERNEL_DTYPES:
            by_answer.setdefault(served_by(op, device, dtype), []).append(str(dtype).removeprefix("torch."))
        for place, (answer, dtypes) in enumerate(by_answer.items()):
            lines.append(f"  {'' if place else op:26}{', '.join(dtypes):28}{answer}")
    return lines


def report() -> list[str]:
    """The lines of the report."""
    lines = [f"python      {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for name in ("torch", "triton", "flash-attn", "xformers"):
        lines.append(f"{name:12}{version(name) or 'not installed'}")
    lines.append(f"default     {dispatch.default()} ({IMPLEMENTATION})")
    lines.append(f"interpreter {'on' if interpreted() else 'off'} (TRITON_INTERPRET)")
    lines.append(f"tuning      {tuning.mode()} ({TUNING})")
    products = {"ieee": "exact products", "tf32": "products in TF32"}[launch.input_precision(torch.float32)]
    lines.append(f"float32     {products} (torch.backends.cuda.matmul.fp32_precision)")
    layers = "oneDNN, faster than PyTorch's own choice" if cpu_linear.onednn_is_faster() else "PyTorch's own choice"
    lines.append(f"on a CPU    large float32 linear layers by {layers}")
    for device in devices():
        lines += ["", f"{device}: {describe(device)}", *rows_of(device)]
    return lines


def describe(device: torch.device) -> str:
    """The device's name and relevant properties."""
    if device.type != "cuda":
        return f"{os.cpu_count()} cores"
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor},"
        f" {properties.multi_processor_count} multiprocessors,"
        f" {limits(device).shared_memory // 1024} KiB of shared memory per program"
    )


def main() -> None:
    """Print it."""
    program = "python -m crossmae_kernels.info"
    OneLineParser(program, __doc__, program).parse_args()
    print("\n".join(report()))


if __name__ == "__main__":
    sys.exit(run_command("python -m crossmae_kernels.info", main))
