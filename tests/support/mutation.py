"""Kernels with parts of their source replaced."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

now = False


@contextmanager
def broken(name, directory, *parts):
    """Let launchers take kernels in which of each two ``parts`` the second stands.

    The first of them is what it stands for. ``name`` is that of an op's folder, or of the module of a primitive, where
    device code and launcher share a file.
    """
    module = importlib.import_module(name)
    launcher = module if hasattr(module, "triton") else importlib.import_module(f"{name}.launch")
    original = getattr(launcher, "kernels", launcher)
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
    replaced = kernels if original is launcher else {"kernels": copy}
    with mock.patch.multiple(launcher, **replaced), mock.patch(f"{__name__}.now", True):
        yield
