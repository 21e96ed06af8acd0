"""Kernels with parts of their source replaced."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

now = False


@contextmanager
def broken(name, directory, *parts):
    """Let launchers take kernels in which of each two ``parts`` the second stands.

    The first of them is what it stands for. ``name`` is that of an op's folder or of the module of a primitive.
    """
    original = importlib.import_module(name)
    if not hasattr(original, "triton"):
        original = importlib.import_module(f"{name}.kernels")
    source = Path(original.__file__).read_text()
    for good, bad in zip(parts[::2], parts[1::2], strict=True):
        assert good in source
        source = source.replace(good, bad)
    file = directory / "broken_kernels.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("broken_kernels", file)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    kernels = {name: getattr(copy, name) for name in vars(original) if name.endswith("_kernel")}
    with mock.patch.multiple(original, **kernels), mock.patch(f"{__name__}.now", True):
        yield
