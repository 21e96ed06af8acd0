"""What importing costs and needs, seen from fresh processes."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    blocked = [
        "torchvision",
        "lightning_fabric",
        "tensorboard",
        "sklearn",
        "skimage",
        "tqdm",
        "tifffile",
        "braceexpand",
    ]
    code = BLOCK.format(blocked=blocked) + (
        "from crossmae.cli import main\n"
        "for words in (['pretrain', '--help'], ['check', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as stop: print(stop.code)\n"
    )
    assert fresh(code).splitlines().count("0") == 2


@pytest.mark.parametrize("missing", ["matplotlib"])
def test_drawing_without_matplotlib_says_what_to_install(missing, tmp_path):
    code = BLOCK.format(blocked=[missing]) + (
        f"from crossmae.cli import main; sys.exit(main(['flops', '--figure', {str(tmp_path / 'x.png')!r}]) != 1)"
    )
    assert "ViT-B/16" in fresh(code)
    assert not list(tmp_path.iterdir())


def test_setup_py_imports_setuptools_alone():
    lines = (ROOT / "setup.py").read_text().splitlines()
    assert [line for line in lines if "import" in line] == ["from setuptools import setup"]
