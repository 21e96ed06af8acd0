"""Kernels with a part of their source replaced."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from unittest import mock


@contextmanager
def broken(folder, directory, good, bad):
    """Let the launcher of ``folder`` (a module's name) take kernels in which ``bad`` stands for ``good``."""
    launch = importlib.import_module(f"{folder}.launch")
    source = Path(launch.kernels.__file__).read_text()
    assert good in source
    file = directory / "broken_kernels.py"
    file.write_text(source.replace(good, bad))
    spec = importlib.util.spec_from_file_location("broken_kernels", file)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    with mock.patch.object(launch, "kernels", kernels):
        yield
