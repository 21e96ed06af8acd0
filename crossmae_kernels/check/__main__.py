"""``python -m crossmae_kernels.check``."""

import sys

from crossmae_kernels.check import main

if __name__ == "__main__":
    sys.exit(main())
