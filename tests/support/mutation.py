"""Kernels with parts of their source replaced."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

now = False


@contextmanager
def broken(folder, directory, *parts):
    """Let the launcher of ``folder`` (a module's name) take kernels in which of each two ``parts`` the second stands.

    The first of them is what it stands for.
    """
    launch = importlib.import_module(f"{folder}.launch")
    source = Path(launch.kernels.__file__).read_text()
    for good, bad in zip(parts[::2], parts[1::2], strict=True):
        assert good in source
        source = source.replace(good, bad)
    file = directory / "broken_kernels.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("broken_kernels", file)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    with mock.patch.object(launch, "kernels", kernels), mock.patch(f"{__name__}.now", True):
        yield
