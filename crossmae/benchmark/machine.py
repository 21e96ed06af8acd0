"""What measurements depend on besides the settings: device, versions, commit."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from crossmae_kernels.extras import version

ROOT = Path(__file__).parents[2]


def machine(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and commit."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else f"CPU, {torch.get_num_threads()} threads",
        "driver": _driver() if on_cuda else "",
        "cuda": torch.version.cuda if on_cuda else "",
        "torch": torch.__version__,
        "triton": version("triton"),
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
        "python": platform.python_version(),
        "commit": commit(),
    }


def commit() -> str:
    """The commit of the working tree, marked if it was changed; a digest of the sources where no git tracks them."""
    try:
        _output("git", "ls-files", "--error-unmatch", __file__)  # an installation may lie within somebody's repository
        head = _output("git", "rev-parse", "HEAD")
        return head + ("+changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        digest = hashlib.sha256()
        for package in ("crossmae", "crossmae_kernels", "benchmarks"):
            for file in sorted((ROOT / package).rglob("*.py")):
                digest.update(file.read_bytes())
        return f"tree-{digest.hexdigest()[:12]}"


def where(about: dict[str, Any]) -> str:
    """A line with the device of ``machine``, the versions, the commit and the date."""
    parts = [about["device"]]
    parts += ["kernels in Triton's interpreter: times mean nothing"] if about.get("interpreted") else []
    parts += [f"{name} {about[name]}" for name in ("driver", "torch", "triton", "cuda") if about.get(name)]
    head, changed, _ = about["commit"].partition("+")
    return "; ".join([*parts, f"commit {head[:10]}{' with changes' if changed else ''}", about["date"][:10]])


def _driver() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        return _output(*command).splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
