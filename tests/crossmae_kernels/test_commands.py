"""Imports, ``crossmae_kernels.info`` and ``crossmae_kernels.check``, in fresh processes where importing matters."""

import importlib
import itertools
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import crossmae_kernels
from crossmae_kernels.runtime.dispatch import default_implementation
from crossmae_kernels.testing.problems import tiny

WITHOUT_TRITON = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'triton':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)
"""


def run(*command, **environment):
    """Run Python with Triton's interpreter off unless asked for."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], env=inherited | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def interpreter_off(monkeypatch):
    """This process takes Triton's interpreter for switched off. Kernels are what they are when first imported."""
    package = Path(crossmae_kernels.__file__).parent
    for file in (*package.glob("*/kernels.py"), *package.glob("primitives/[!_]*.py")):
        importlib.import_module(".".join(file.relative_to(package.parent).with_suffix("").parts))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def run_here(interpreter_off, monkeypatch, capsys):
    """Run a module as ``python -m`` does, without its two seconds of importing PyTorch."""

    def run_module(module, *words):
        monkeypatch.setattr(sys, "argv", [module, *words])
        if module in sys.modules:  # imported anew; afterwards it is the same for its package and for other tests
            package, _, name = module.rpartition(".")
            monkeypatch.setattr(sys.modules[package], name, sys.modules[module])
            monkeypatch.delitem(sys.modules, module)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(module, run_name="__main__")
        return stop.value.code, *capsys.readouterr()

    return run_module


def test_imports_and_runs_without_triton_and_says_so():
    code = (
        WITHOUT_TRITON
        + """
import torch, crossmae_kernels as ck
q, k = torch.randn(1, 2, 8, requires_grad=True), torch.randn(1, 3, 8)
ck.cross_attention(q, k, k, 2).sum().backward()
try:
    ck.cross_attention(q, k, k, 2, impl='triton')
except RuntimeError as error:
    print(error)
"""
    )
    done = run("-c", code, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert "Triton is not installed" in done.stdout


def test_a_wrong_environment_ends_a_command_in_one_line():
    done = run("-m", "crossmae_kernels.info", CROSSMAE_KERNELS_TUNE="1")
    line = "python -m crossmae_kernels.info: CROSSMAE_KERNELS_TUNE must be one of off, recall, forms, all, got '1'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize("module", ["audit", "check", "info"])
def test_an_unknown_option_is_one_line_and_help_has_an_example(run_here, module):
    program = f"python -m crossmae_kernels.{module}"
    line = f"{program}: error: unrecognized arguments: --nope; see {program} --help\n"
    assert run_here(f"crossmae_kernels.{module}", "--nope") == (2, "", line)
    code, shown, errors = run_here(f"crossmae_kernels.{module}", "--help")
    assert (code, errors) == (0, "")
    assert f"Example: {program}" in " ".join(shown.split())


def test_import_loads_neither_triton_nor_the_compiler_and_asks_no_device():
    code = """
import sys, torch
torch.cuda.is_available = torch.cuda.get_device_capability = torch.cuda.get_device_properties = None
import crossmae_kernels, crossmae_kernels.testing, crossmae_kernels.check
print(sorted({'triton', 'torch._dynamo'} & set(sys.modules)), torch.cuda.is_initialized())
"""
    done = run("-c", code)
    assert done.stdout.strip() == "[] False", done.stderr


def test_flops_are_counted_if_the_counter_is_imported_first():
    """As ``test_flops.py`` sees, it is the same the other way round: what all tests share imports the package."""
    code = """
import torch
from torch.utils.flop_counter import FlopCounterMode
import crossmae_kernels as ck
from crossmae_kernels.runtime.dispatch import default
with FlopCounterMode(display=False) as counter:
    ck.linear_residual(torch.ones(2, 16), torch.ones(3, 16), None, torch.ones(2, 3))
print(default(), counter.get_total_flops())
"""
    done = run("-c", code, TRITON_INTERPRET="1", CROSSMAE_KERNELS_IMPL="triton")
    assert done.stdout.split() == ["triton", str(2 * 2 * 16 * 3)], done.stderr


def test_info_names_the_implementation_of_each_op_and_the_reasons(run_here):
    code, shown, errors = run_here("crossmae_kernels.info")
    assert code == 0, errors
    (served,) = [line for line in shown.split("cpu:")[1].splitlines() if "cross_attention" in line][:1]
    assert "reference: kernels run on CUDA devices" in served


def test_info_names_the_kernels_where_the_interpreter_is_asked_for(interpreter):
    from crossmae_kernels import info

    with default_implementation("triton"):
        head, _, tail = "\n".join(info.report()).partition("  fold_norm ")
    assert " none: " not in head
    assert tail.splitlines()[0].split() == ["float32,", "float16,", "bfloat16", "triton"]


def test_check_judges_the_kernels_in_the_interpreter():
    # The first problem of each op; the contract judges all of them.
    code = """
import sys
from crossmae_kernels import check
from crossmae_kernels.testing.problems import tiny
check.tiny = lambda draw: {problem.op: problem for problem in reversed(tiny(draw))}.values()
sys.exit(check.main(["--interpret", "--json"]))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    judged = [line for line in lines if line["implementation"] == "triton, interpreted"]
    assert all(line["verdict"] == "ok" and line["error"] <= line["budget"] for line in judged)
    served = {(line["op"], line["dtype"]) for line in judged}
    assert served == set(itertools.product(crossmae_kernels.__all__, ("float32", "float16", "bfloat16")))


def test_check_sets_other_attention_beside_and_shows_what_is_missing(interpreter_off, monkeypatch, capsys):
    from crossmae_kernels import check

    monkeypatch.setattr(check, "tiny", lambda draw: tiny(draw)[:1])
    assert check.main([]) == 0
    shown = capsys.readouterr().out
    sdpa = [f"sdpa {backend}" for backend in ("math", "efficient", "flash", "cudnn")]
    for name in (*sdpa, *(f"FlashAttention {version}" for version in (2, 3, 4)), "xformers"):
        assert name in shown
    if not torch.cuda.is_available():
        assert "refused  kernels run on CUDA devices" in shown


def test_check_fails_when_a_kernel_is_wrong_or_breaks(interpreter, monkeypatch, capsys):
    from crossmae_kernels import check
    from crossmae_kernels.cross_attention import kernels

    monkeypatch.setattr(check, "tiny", lambda draw: tiny(draw)[:1])
    assert check.main(["--interpret"]) == 0
    assert "wrong" not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "LOG2_E", 1.02 * kernels.LOG2_E)
        assert check.main(["--interpret"]) == 1
        assert "triton, interpreted wrong    error" in capsys.readouterr().out
    monkeypatch.delattr(kernels, "backward")
    assert check.main(["--interpret"]) == 1
    assert "has no attribute 'backward'" in capsys.readouterr().out
