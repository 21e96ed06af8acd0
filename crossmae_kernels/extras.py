"""Optional dependencies: what to install if one is missing."""

import importlib.metadata
import importlib.util
import sys

# Modules by the extra in pyproject.toml that installs them, "" for the base installation. A module in several extras
# counts as the first one's unless the extra is named.
EXTRAS: dict[str, tuple[str, ...]] = {
    "": ("torch", "triton", "numpy", "safetensors", "jsonargparse", "yaml", "tabulate"),
    "figures": ("matplotlib", "PIL", "plotly"),
    "train": (
        *("lightning_fabric", "torchvision", "tensorboard", "sklearn", "skimage", "tqdm", "PIL", "tifffile"),
        *("braceexpand", "matplotlib", "timm"),
    ),
    "detect": ("pycocotools",),
    "baselines": ("flash_attn", "xformers"),
    "interpreter": ("ml_dtypes",),
    "docs": ("zensical", "mkdocstrings"),
    "test": ("pytest", "pytest_benchmark", "xdist", "webdataset"),
}

# Names of distributions that are not the module's name with dashes.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "mkdocstrings": "mkdocstrings-python",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "xdist": "pytest-xdist",
    "yaml": "PyYAML",
}


class MissingPackageError(ImportError):
    """Packages are not installed; the message continues the name of what needs them: "needs ...: pip install ..."."""

    def __init__(self, modules: tuple[str, ...], extra: str) -> None:
        names = ", ".join(distribution(module) for module in modules)
        if extra:
            command = f"pip install 'crossmae-kernels[{extra}]'"
        elif modules == ("triton",):
            command = "pip install triton, which is available for Linux"
        else:
            command = "pip install crossmae-kernels"
        super().__init__(f"needs {names}: {command}", name=modules[0])


def distribution(module: str) -> str:
    """The name under which pip installs a module."""
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))


def version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed(module: str) -> bool:
    """Whether a top-level module can be found, without importing it."""
    if sys.modules.get(module) is not None:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def require(extra: str, *modules: str) -> None:
    """Raise MissingPackageError, listing all missing modules of an extra, or of those named.

    Called before work starts, as a missing module that is first imported hours later would end a run then.
    """
    missing = tuple(module for module in modules or EXTRAS[extra] if not installed(module))
    if missing:
        raise MissingPackageError(missing, extra)


def missing_package(error: ModuleNotFoundError) -> MissingPackageError | None:
    """What to install after an import failed; None if installing a package would not help.

    A missing module inside an installed package is a bug in that package or in the importing code.
    """
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    return None if extra is None or installed(module) else MissingPackageError((module,), extra)
