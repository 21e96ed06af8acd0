"""Python in a process of its own, without Triton's interpreter, which this one may have in place."""

import os
import subprocess
import sys


def run(*command):
    """What it prints; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
