"""What measurements depend on besides the code: device and versions."""

import os
import platform
import subprocess
from typing import Any

import torch

from crossmae_kernels.extras import version


def machine(device: torch.device) -> dict[str, Any]:
    """Device, driver and versions."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU, {torch.get_num_threads()} threads",
        "driver": _driver() if on_cuda else "",
        "cuda": torch.version.cuda if on_cuda else "",
        "torch": torch.__version__,
        "triton": version("triton"),
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
        "python": platform.python_version(),
    }


def _driver() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""
