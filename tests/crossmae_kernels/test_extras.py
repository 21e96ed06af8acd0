"""What to install where a package is missing."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from crossmae_kernels import extras
from crossmae_kernels.extras import EXTRAS, MissingPackageError, distribution, missing_package, require

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
TOOLS = re.compile("ruff|mypy|types-.*|crossmae-kernels")  # run, or read by tools; imported by nothing


def names(requirements):
    found = (re.match(r"[\w-]+", requirement)[0] for requirement in requirements)
    return {name for name in found if not TOOLS.fullmatch(name)}


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_an_extra_brings_what_the_table_says(extra):
    assert {distribution(module) for module in EXTRAS[extra]} == names(PROJECT["optional-dependencies"][extra])


def test_the_table_has_every_extra_and_the_base():
    assert set(EXTRAS) == {"", *PROJECT["optional-dependencies"]}
    # jsonargparse brings PyYAML.
    assert {distribution(module) for module in EXTRAS[""]} == names(PROJECT["dependencies"]) | {"PyYAML"}


@pytest.mark.parametrize("extra", ["train", "figures"])
def test_the_modules_are_called_so(extra):
    """Both extras are part of "test", so here they are all installed."""
    require(extra)


def test_all_that_is_missing_is_named_at_once(monkeypatch):
    for module in ("sklearn", "PIL"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError) as raised:
        require("train")
    assert str(raised.value) == "needs scikit-learn, pillow: pip install 'crossmae-kernels[train]'"
    require("train", "torchvision", "tqdm")


def failed_import(code):
    with pytest.raises(ModuleNotFoundError) as raised:
        exec(code, {})
    return missing_package(raised.value)


@pytest.mark.parametrize(
    ("code", "module", "command"),
    [
        ("import tifffile", "tifffile", "needs tifffile: pip install 'crossmae-kernels[train]'"),
        ("import sklearn.datasets", "sklearn", "needs scikit-learn: pip install 'crossmae-kernels[train]'"),
        ("from PIL import Image", "PIL", "needs pillow: pip install 'crossmae-kernels[figures]'"),
        ("import webdataset", "webdataset", "needs webdataset: pip install 'crossmae-kernels[test]'"),
        ("import tabulate", "tabulate", "needs tabulate: pip install crossmae-kernels"),
        ("import triton", "triton", "needs triton: pip install triton, which is available for Linux"),
    ],
)
def test_a_failed_import_of_a_missing_package(code, module, command, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert str(failed_import(code)) == command


@pytest.mark.parametrize("code", ["import sklearn.nothing", "import nothing_of_ours", "import crossmae.nothing"])
def test_a_wrong_import_is_no_missing_package(code):
    assert failed_import(code) is None


def test_an_error_without_a_name_is_no_missing_package():
    assert missing_package(ModuleNotFoundError("No module named 'sklearn'")) is None


def test_a_finder_that_raises_has_not_found(monkeypatch):
    def find_spec(name, path=None, target=None):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(sys, "meta_path", [type("Blocked", (), {"find_spec": staticmethod(find_spec)})])
    monkeypatch.delitem(sys.modules, "webdataset", raising=False)
    assert not extras.installed("webdataset")
    assert extras.installed("sys")
