"""``python -m crossmae_kernels.check``."""

import sys

from crossmae_kernels.check import main
from crossmae_kernels.command import run_command

if __name__ == "__main__":
    sys.exit(run_command("python -m crossmae_kernels.check", main))
