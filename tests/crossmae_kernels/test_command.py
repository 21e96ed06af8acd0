"""How commands end."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import crossmae_kernels
from crossmae_kernels.command import reason, run_command
from crossmae_kernels.extras import MissingPackageError


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("steps must be\n  at least 4"), 1, "it: steps must be at least 4"),
        (RuntimeError(), 1, "it: RuntimeError"),
        (FileNotFoundError("there is no image"), 1, "it: there is no image"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), 1, "it: a.png: Permission denied"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), 1, "it: a -> b: Invalid cross-device link"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "it: No space left on device"),
        (MissingPackageError(("PIL",), "train"), 1, "it needs pillow: pip install 'crossmae-kernels[train]'"),
        (KeyboardInterrupt(), 130, "it: interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(error, code, line, capsys):
    assert run_command("it", raising(error)) == code
    assert capsys.readouterr().err == line + "\n"


def test_an_error_of_the_program_keeps_its_traceback():
    for error in (KeyError("x"), ModuleNotFoundError("No module named 'sklearn.nothing'", name="sklearn.nothing")):
        with pytest.raises(type(error)):
            run_command("it", raising(error))


def test_codes_are_handed_on():
    assert [run_command("it", lambda code=code: code) for code in (None, 0, 3)] == [0, 0, 3]
    with pytest.raises(SystemExit):
        run_command("it", raising(SystemExit(2)))


# The package's own __init__ imports PyTorch, which takes seconds and is not needed here.
START = f"""
import sys, types
package = sys.modules["crossmae_kernels"] = types.ModuleType("crossmae_kernels")
package.__path__ = {list(crossmae_kernels.__path__)!r}
from crossmae_kernels.command import run_command
"""


def fresh(code, shell, **environment):
    """Run Python code, which finds ``run_command``, in a shell's pipeline."""
    code = START + code
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {shell}', sys.executable, code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


PRINTING = "sys.exit(run_command('it', lambda: [print('line', i) for i in range({lines})] and {code}))"


@pytest.mark.parametrize("lines", [3, 100_000])  # fits into the buffer, does not
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_nobody_reads_ends_quietly(lines, unbuffered):
    done = fresh(PRINTING.format(lines=lines, code=0), "| true", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_whose_end_is_read_hands_the_code_on():
    done = fresh(PRINTING.format(lines=3, code=5), "| cat")
    assert (done.returncode, done.stdout) == (5, "line 0\nline 1\nline 2\n")


def test_a_full_disk_under_standard_output_is_one_line():
    done = fresh(PRINTING.format(lines=3, code=0), "> /dev/full")
    assert (done.returncode, done.stderr) == (1, "it: No space left on device\n")


@pytest.mark.parametrize(
    ("variable", "value", "options"),
    [
        ("CROSSMAE_KERNELS_TUNE", "1", "off, recall, forms, all"),
        ("CROSSMAE_KERNELS_IMPL", "", "auto, triton, reference"),
    ],
)
def test_a_wrong_environment_is_one_line_and_nothing_is_run(variable, value, options, monkeypatch, capsys):
    monkeypatch.setenv(variable, value)
    assert run_command("it", raising(KeyError("run"))) == 2
    assert capsys.readouterr().err == f"it: {variable} must be one of {options}, got {value!r}\n"


def test_closed_streams_are_no_reason_to_fail():
    code = "sys.exit(run_command('it', lambda: sys.stdout.write('x') + sys.stderr.write('y') + 5))"
    assert fresh(code, ">&- 2>&-").returncode == 7


def test_what_an_encoding_lacks_is_escaped():
    done = fresh("sys.exit(run_command('it', lambda: print('a → ü')))", "", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "a \\u2192 \\xfc\n"), done.stderr


def test_ctrl_c_is_one_line():
    # A shell's background jobs ignore the signal, and so do their children.
    code = START + "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "sys.exit(run_command('it', lambda: print('begun', flush=True) or time.sleep(60)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "it: interrupted\n")


def test_windows_says_another_errno_for_a_pipe_that_nobody_reads(monkeypatch, capsys):
    gone = OSError(errno.EINVAL, "Invalid argument")
    assert run_command("it", raising(gone)) == 1
    assert capsys.readouterr().err == "it: Invalid argument\n"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert run_command("it", raising(gone)) == 141
    assert run_command("it", raising(OSError(errno.EINVAL, "Invalid argument", "a:b"))) == 1


def test_a_reason_has_no_number():
    with pytest.raises(OSError, match=re.escape("[Errno")) as raised:
        open("/nowhere/at/all")  # noqa: SIM115
    assert reason(raised.value) == "/nowhere/at/all: No such file or directory"
