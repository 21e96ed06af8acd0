"""How every command ends: with an exit code, and at most one line if something went wrong."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable

from crossmae_kernels.environment import require_environment
from crossmae_kernels.extras import MissingPackageError, missing_package, require

# A shell's codes for a process ended by a signal: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED, READER_GONE = 130, 141
# argparse's code for wrong arguments.
MISUSED = 2


def run_command(name: str, function: Callable[[], int | None]) -> int:
    """Run a command; returns its exit code.

    Expected errors and missing packages give one line on standard error and code 1; Ctrl-C gives one line too. A wrong
    value of this package's environment variables gives one line and code 2, and nothing is run.
    If nobody reads standard output any more (``| head``), nothing is reported. Bugs in the program are not caught.
    """
    _make_printable()
    try:
        require_environment()
    except ValueError as error:
        return _fail(f"{name}: {reason(error)}", MISUSED)
    try:
        try:
            return function() or 0
        finally:
            _flush()
    except KeyboardInterrupt:
        return _fail(f"{name}: interrupted", INTERRUPTED)
    except MissingPackageError as error:
        return _fail(f"{name} {error}")
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        return _fail(f"{name} {missing}")
    except OSError as error:
        if _reader_is_gone(error):
            _drop_output()
            return READER_GONE
        return _fail(f"{name}: {reason(error)}")
    except (ValueError, RuntimeError) as error:
        return _fail(f"{name}: {reason(error)}")


def stop_without(name: str, extra: str) -> None:
    """Exit with the same line as ``run_command`` if a package of an extra is missing.

    For programs whose own imports need the extra.
    """
    if code := run_command(name, lambda: require(extra)):
        sys.exit(code)


def reason(error: BaseException) -> str:
    """What went wrong, on one line; for operating system errors the text without the number."""
    if isinstance(error, OSError) and error.strerror:
        files = [os.fsdecode(file) for file in (error.filename, error.filename2) if isinstance(file, (str, bytes))]
        return ": ".join([" -> ".join(files), error.strerror] if files else [error.strerror])
    return " ".join(str(error).split()) or type(error).__name__


def _flush() -> None:
    """Flush output now: at exit it is too late to handle errors."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
        raise


def _make_printable() -> None:
    """Keep a terminal's encoding, or a closed stream, from causing failures."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(line: str, code: int = 1) -> int:
    with contextlib.suppress(OSError):  # ``2>&1 | head``
        print(line, file=sys.stderr)
    return code


def _reader_is_gone(error: OSError) -> bool:
    windows_says = sys.platform == "win32" and error.errno == errno.EINVAL and error.filename is None
    return isinstance(error, BrokenPipeError) or windows_says


def _drop_output() -> None:
    """Discard unwritten output, which would fail again at exit."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
