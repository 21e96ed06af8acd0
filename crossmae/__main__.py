"""``python -m crossmae``: the command line, for torchrun and when the script ``crossmae`` is not on the path."""

import sys

from crossmae.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
