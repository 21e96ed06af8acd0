"""How every command ends: an exit code, and at most one line where something went wrong."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable

from crossmae_kernels.common.extras import MissingPackageError, missing_package, require

# As a shell has it for a process that a signal ended: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED, READER_GONE = 130, 141


def run_command(name: str, function: Callable[[], int | None]) -> int:
    """Run a command; returns its exit code.

    What is expected to go wrong, or to be missing, is one line on standard error and code 1; Ctrl-C is one line too.
    Where nobody reads standard output any more (``| head``) there is nothing to say. Errors of the program itself are
    not caught.
    """
    _make_printable()
    try:
        try:
            return function() or 0
        finally:
            sys.stdout.flush()  # not at exit, where it is too late to answer for
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
        return READER_GONE if _reader_is_gone() else _fail(f"{name}: {reason(error)}")
    except (ValueError, RuntimeError) as error:
        return _fail(f"{name}: {reason(error)}")


def stop_without(name: str, extra: str) -> None:
    """End the process with the line of ``run_command`` if a package of an extra is missing.

    For programs whose own imports need the extra.
    """
    if code := run_command(name, lambda: require(extra)):
        sys.exit(code)


def reason(error: BaseException) -> str:
    """What went wrong, on one line; of the operating system its words rather than its number."""
    if isinstance(error, OSError) and error.strerror:
        files = [os.fsdecode(file) for file in (error.filename, error.filename2) if isinstance(file, (str, bytes))]
        return ": ".join([" -> ".join(files), error.strerror] if files else [error.strerror])
    return " ".join(str(error).split()) or type(error).__name__


def _make_printable() -> None:
    """No encoding of a terminal, and no closed stream, is a reason to fail."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(line: str, code: int = 1) -> int:
    _reader_is_gone()
    with contextlib.suppress(OSError):  # ``2>&1 | head``
        print(line, file=sys.stderr)
    return code


def _reader_is_gone() -> bool:
    """Whether standard output has lost its reader. What cannot be written is dropped: it would fail at exit again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return error.errno in (errno.EPIPE, errno.EINVAL)  # Windows says EINVAL
    return False
