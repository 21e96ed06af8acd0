"""What holds for all tests."""

import contextlib
import importlib.util
import json
import os
from pathlib import Path

import mutation
import pytest
import seeds
import torch

from crossmae_kernels import environment
from crossmae_kernels.runtime import records, tuning
from crossmae_kernels.testing import judge

# Two pytest workers on two cores: one thread each, in scikit-learn's linear algebra and in processes that tests start
# too, or they wait for each other.
torch.set_num_threads(1)
for library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# Where there is no GPU, kernels run in Triton's interpreter. Triton reads this when it is imported, which any test
# module may cause, so it is set before the first of them is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Rules alone decide, on a GPU too, so that every run of the tests takes the same forms; tests of tuning say otherwise.
# Read when the package is imported: in this process it is too late, so there is a fixture too.
os.environ.setdefault(environment.TUNING, "off")

# Poisoned allocations come with PyTorch's deterministic mode, in which cuBLAS wants to be told so before it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

TRAINING = (
    *("lightning_fabric", "torchvision", "tensorboard", "sklearn", "skimage", "tifffile"),
    *("timm", "webdataset", "yaml"),
)
# A machine to check kernels on may have PyTorch, Triton and pytest alone; what needs more is left out there.
NEEDED = {
    "crossmae/acceleration": ("safetensors",),
    "crossmae/checkpoint": ("safetensors",),
    "crossmae/export": ("safetensors",),
    "crossmae/model/test_golden.py": ("safetensors",),
    "crossmae/test_figures.py": ("numpy", "PIL", "matplotlib"),
    "crossmae/commands/test_reconstruct.py": ("numpy", "PIL", "matplotlib", "jsonargparse"),
    "crossmae/commands/test_convert.py": ("jsonargparse", "safetensors", *TRAINING),
    "crossmae/commands/test_cli.py": ("jsonargparse", "tabulate", "matplotlib", *TRAINING),
    "crossmae/commands/test_probe.py": ("jsonargparse", "tabulate", "matplotlib", *TRAINING),
    "crossmae/commands/test_tune.py": ("jsonargparse", "tabulate", *TRAINING),
    "crossmae/test_imports.py": ("jsonargparse", "tabulate", "matplotlib", *TRAINING),
    "crossmae_kernels/audit/test_integers.py": ("numpy",),
    "crossmae_kernels/audit/test_literals.py": ("numpy",),
    "crossmae_kernels/audit/test_operands.py": ("numpy",),
    "crossmae_kernels/audit/test_replay.py": ("numpy",),
    "crossmae_kernels/test_precision.py": ("numpy",),
    "crossmae_kernels/runtime/test_interpreter.py": ("ml_dtypes",),
    "crossmae_kernels/test_arguments.py": ("numpy",),
    "crossmae/model/test_config.py": ("numpy",),
    "crossmae_kernels/test_extras.py": ("tabulate", "matplotlib", *TRAINING),
    "crossmae/planning": ("jsonargparse", "numpy", "tabulate", *TRAINING),
    "crossmae/test_commands_in_docs.py": ("jsonargparse", "tabulate", "matplotlib", *TRAINING),
    "crossmae/training": TRAINING,
    "benchmarks/test_plans.py": ("numpy", "tabulate", *TRAINING),
    "benchmarks/test_predictions.py": ("scipy", "tabulate"),
    "benchmarks/test_report.py": ("matplotlib", "tabulate"),
    "benchmarks/test_residuals.py": ("matplotlib", "tabulate", *TRAINING),
    "benchmarks/test_study.py": ("matplotlib", "tabulate", *TRAINING),
    "benchmarks/test_transfer.py": ("matplotlib", "tabulate", *TRAINING),
}
collect_ignore = [
    path for path, modules in NEEDED.items() if not all(importlib.util.find_spec(module) for module in modules)
]


def _seeds(text):
    first, separator, end = text.partition(":")
    return range(int(first), int(end)) if separator else range(int(first))


def pytest_addoption(parser):
    parser.addoption("--seeds", type=_seeds, help="run tests that judge by the budget with seeds 0 to N-1, or A:B")
    parser.addoption("--verdicts", type=Path, help="append every verdict by the budget to this file, one JSON a line")


def pytest_generate_tests(metafunc):
    if metafunc.definition.get_closest_marker("budget") and (chosen := metafunc.config.option.seeds):
        metafunc.parametrize("_seeded", chosen, indirect=True)


@pytest.fixture(autouse=True, scope="session")
def _rules_decide():
    with tuning.tuning_mode(os.environ[environment.TUNING]):
        yield


@pytest.fixture(autouse=True)
def _seeded(request, monkeypatch):
    """Whatever is drawn, from generators of the tests' own or from PyTorch's, is drawn again in another run."""
    monkeypatch.setattr(seeds, "current", getattr(request, "param", 0))
    torch.manual_seed(seeds.seeded())


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Every device counts as a GPU on which nothing was measured yet; records lie in ``tmp_path``."""
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(tuning, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "_spent", 0.0)


def _write_verdicts(file):
    """Let the judge write down what it finds, and whether the kernels were broken on purpose."""
    worst = judge.worst

    def written(*arguments, **others):
        verdict = worst(*arguments, **others)
        test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
        record = {"test": test, "verdict": str(verdict), "share": verdict.share, "broken": mutation.now}
        with file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        return verdict

    judge.worst = written


def pytest_configure(config):
    if config.option.verdicts:
        _write_verdicts(config.option.verdicts)
    # Triton 3.6's interpreter, with NumPy < 2.4.
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning")
    # PyTorch 2.11's compiler, of every autograd.Function that it traces.
    config.addinivalue_line("filterwarnings", "ignore:.*should not be instantiated:DeprecationWarning")
