"""What importing costs and needs, seen from fresh processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from crossmae.commands.cli import main
from crossmae_kernels.extras import EXTRAS, distribution

ROOT = Path(__file__).parents[2]
# A module that is None in sys.modules is neither found nor importable.
BLOCK = "import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"


def fresh(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_works_without_triton_safetensors_matplotlib_sklearn_and_torchvision():
    blocked = ["triton", "safetensors", "matplotlib", "sklearn", "torchvision", "tqdm", "PIL"]
    code = BLOCK.format(blocked=blocked) + (
        "import torch, crossmae\n"
        "m = crossmae.create_model('crossmae_vit_tiny_patch4')\n"
        "print(float(m(torch.randn(2, 3, 32, 32)).loss.detach()) > 0)"
    )
    assert fresh(code) == "True\n"


def test_imports_nothing_heavy_beyond_torch():
    code = "import torch, sys; before = set(sys.modules); import crossmae; print(*(set(sys.modules) - before))"
    new = {name.split(".")[0] for name in fresh(code).split()}
    assert new.isdisjoint({"triton", "matplotlib", "torchvision", "sklearn", "jsonargparse", "tabulate", "tqdm", "PIL"})
    # Everything that comes with it is ours or the standard library.
    assert new - set(sys.stdlib_module_names) <= {"crossmae", "crossmae_kernels", "torch", "numpy"}


def test_commands_but_training_need_none_of_its_packages():
    code = BLOCK.format(blocked=[*EXTRAS["train"], *EXTRAS["detect"], "triton"]) + (
        "from crossmae.commands.cli import main\n"
        "for words in ([], ['pretrain'], ['detect'], ['check'], ['flops']):\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit as stop: print(stop.code)\n"
    )
    assert fresh(code).splitlines().count("0") == 5


def test_drawing_without_matplotlib_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for words, code in ((["flops"], 0), (["flops", "--figure", "x.png"], 1)):  # a picture was not asked for; it was
        assert main(words) == code
        printed = capsys.readouterr()
        assert "ViT-B/16" in printed.out
        assert "needs matplotlib: pip install 'crossmae-kernels[figures]'\n" in printed.err
        assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


PICTURES = {"torchvision", "PIL", "tifffile"}
COMMANDS = {
    "pretrain": (["pretrain", "--dry-run"], EXTRAS["train"]),
    "finetune": (["finetune", "--dry-run"], EXTRAS["train"]),
    "probe": (["probe", "a", "--source", "digits"], EXTRAS["train"]),
    "demo": (["demo", "--out", "there"], EXTRAS["train"]),
    "detect": (["detect", "--dry-run"], EXTRAS["train"]),
    "reconstruct": (["reconstruct", "a.png", "--checkpoint", "b"], PICTURES),
    "mixing": (["reconstruct", "a.png", "--checkpoint", "b", "--mixing", "c.png"], PICTURES | {"matplotlib"}),
}


@pytest.mark.parametrize("missing", sorted(set(EXTRAS["train"])))
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_what_to_install_before_it_does_anything(command, missing, tmp_path, monkeypatch, capsys):
    words, needed = COMMANDS[command]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    if missing in needed:
        assert main(words) == 1
        line = f"crossmae {words[0]} needs {distribution(missing)}: pip install 'crossmae-kernels[train]'\n"
        assert capsys.readouterr().err == line
    elif words[0] == "reconstruct":
        assert main(words) == 1
        assert capsys.readouterr().err == "crossmae reconstruct: there is no image a.png\n"
    assert not list(tmp_path.iterdir())


def test_detection_says_what_it_needs_beyond_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert main(["detect", "--dry-run"]) == 1
    assert capsys.readouterr().err == "crossmae detect needs pycocotools: pip install 'crossmae-kernels[detect]'\n"


def test_a_module_that_is_run_says_what_to_install():
    needs = {
        "crossmae_kernels.audit": "needs triton: pip install triton, which is available for Linux",
        "benchmarks.study": "needs lightning-fabric: pip install 'crossmae-kernels[train]'",
    }
    code = BLOCK.format(blocked=["triton", "lightning_fabric"]) + (
        "import runpy\n"
        f"for module in {[*needs]}:\n"
        "    sys.argv = [module]\n"
        "    try: runpy.run_module(module, run_name='__main__')\n"
        "    except SystemExit as stop: print(stop.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "1\n" * len(needs)
    assert done.stderr == "".join(f"python -m {module} {line}\n" for module, line in needs.items())


def test_the_interpreter_is_not_asked_for_in_vain(monkeypatch, capsys):
    monkeypatch.setattr("crossmae_kernels.check.machine_refusals", lambda device: ["Triton is not installed"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["check", "--interpret"]) == 1
    assert capsys.readouterr().err == "crossmae check: --interpret: Triton is not installed\n"


def test_setup_py_imports_setuptools_alone():
    lines = (ROOT / "setup.py").read_text().splitlines()
    assert [line for line in lines if "import" in line] == ["from setuptools import setup"]
