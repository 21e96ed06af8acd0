"""Which implementation serves each op on this machine, and why no other: ``python -m crossmae_kernels.info``."""

import importlib.metadata
import os
import platform
import sys

import torch

from crossmae_kernels.common import implementation, machine, tuning
from crossmae_kernels.common.command import run_command

OPS = (
    "cross_attention",
    "mix_feature_maps",
    "project_feature_maps",
    "norm_linear",
    "linear_residual",
    "mlp",
    "gather_patches",
    "patch_loss",
)


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]


def served_by(op: str, device: torch.device) -> str:
    """Who serves calls with ``impl="auto"`` there, and why the kernel does not."""
    refusals = machine.machine_refusals(device)
    try:
        chosen = implementation.choose(op, "auto", refusals, worthwhile=device.type == "cuda")
    except RuntimeError as error:
        return f"none: {error}"
    if chosen == "triton":
        return "triton"
    if implementation.default() == "reference":
        return "reference: the process-wide default"
    return "reference: " + ("; ".join(refusals) or "on a CPU the interpreter runs kernels only when asked to")


def report() -> list[str]:
    """Lines of the report."""
    lines = [f"python      {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for name in ("torch", "triton", "flash-attn", "xformers"):
        lines.append(f"{name:12}{version(name) or 'not installed'}")
    lines.append(f"default     {implementation.default()} ({implementation.ENVIRONMENT_VARIABLE})")
    lines.append(f"interpreter {'on' if machine.interpreted() else 'off'} (TRITON_INTERPRET)")
    lines.append(f"tuning      {'on' if tuning.enabled() else 'off'} (CROSSMAE_KERNELS_TUNE)")
    for device in devices():
        lines += ["", f"{device}: {describe(device)}"]
        lines += [f"  {op:22}{served_by(op, device)}" for op in OPS]
    return lines


def describe(device: torch.device) -> str:
    """Name and what matters of it."""
    if device.type != "cuda":
        return f"{os.cpu_count()} cores"
    properties = torch.cuda.get_device_properties(device)
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor},"
        f" {properties.multi_processor_count} multiprocessors,"
        f" {machine.shared_memory(device) // 1024} KiB of shared memory a program"
    )


def version(distribution: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(run_command("python -m crossmae_kernels.info", lambda: print("\n".join(report()))))
