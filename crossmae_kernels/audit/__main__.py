"""``python -m crossmae_kernels.audit``."""

import os
import sys
from collections.abc import Sequence

from crossmae_kernels.command import run_command

# The interpreter compiles nothing; Triton reads this when it is imported.
os.environ.pop("TRITON_INTERPRET", None)


def main(argv: Sequence[str] | None = None, prog: str = "python -m crossmae_kernels.audit") -> int:
    """See ``crossmae_kernels.audit.command``, which needs Triton to be imported."""
    from crossmae_kernels.audit.command import main as run

    return run(argv, prog)


if __name__ == "__main__":
    sys.exit(run_command("python -m crossmae_kernels.audit", main))
