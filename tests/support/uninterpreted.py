"""Python in processes of their own, without Triton's interpreter, which this one may have in place."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Processes are forks of one that has imported what all need, which takes three seconds.
SERVER = """
import json, os, runpy, sys, traceback
import torch._subclasses.fake_tensor, triton.compiler
import crossmae_kernels.audit.command

def run(words):
    sys.argv = words[1:] if words[0] in ("-c", "-m") else words
    if words[0] == "-c":
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")

for line in sys.stdin:
    words, environment, *files = json.loads(line)
    child = os.fork()
    if not child:
        code = 0
        os.environ.clear()
        os.environ.update(environment)
        for stream, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY), stream)
        try:
            run(words)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def _environment():
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@functools.cache
def _server():
    command, pipe = [sys.executable, "-c", SERVER], subprocess.PIPE
    server = subprocess.Popen(command, env=_environment(), stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.communicate)  # which ends it
    return server


def run(*command):
    """What it prints; it must succeed."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        printed, errors = Path(folder, "printed"), Path(folder, "errors")
        for file in (printed, errors):
            file.touch()
        request = [[*map(str, command)], _environment(), str(printed), str(errors)]
        print(json.dumps(request), file=server.stdin, flush=True)
        assert server.stdout.readline() == "0\n", errors.read_text()[-2000:]
        return printed.read_text()
