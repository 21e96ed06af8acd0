"""The wheel in bare environments: with each extra alone, what the extra is for runs.

An environment holds the wheel and links to the packages that its metadata ask for, one by one, from the environment of
the tests; what pyproject.toml forgets is not there.
"""

import json
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
BENCH = ["bench", "--model", "crossmae_vit_tiny_patch4", "--image-size", "16", "--batch", "1", "--rounds", "1"]
REQUIRE = "from crossmae_kernels.extras import require; require('train'); require('detect')"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("crossmae", "crossmae_kernels"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    return next(folder.glob("*.whl"))


def pip(*words):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], check=True)


def needed(requirements, extras=()):
    """Names of installed distributions that requirements ask for, and those that these ask for."""
    found, todo = set(), [(requirement, extras) for requirement in requirements]
    while todo:
        text, chosen = todo.pop()
        requirement = Requirement(text)
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *chosen))
        key = requirement.name, frozenset(requirement.extras)
        if applies and key not in found and requirement.name != "crossmae-kernels":
            found.add(key)
            todo += [(text, requirement.extras) for text in distribution(requirement.name).requires or ()]
    return {name for name, _ in found}


def environment(folder, wheel, *extras):
    """The Python of an environment with the wheel and what it and extras ask for."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    code = "import importlib.metadata as m, json; print(json.dumps(m.requires('crossmae-kernels')))"
    requirements = json.loads(run(python, "-c", code, cwd=folder))
    links = folder / "links"
    links.mkdir()
    for name in needed(requirements, extras):
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(distribution(name).locate_file(top))
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    (Path(site) / "links.pth").write_text(f"{links}\n")
    return python


def run(python, *words, cwd):
    """What a program prints; a failing one fails the test with what it says."""
    done = subprocess.run([python, "-I", *words], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nothing_but_the_wheel(wheel, tmp_path):
    python = environment(tmp_path / "bare", wheel)
    text = run(python, "-m", "crossmae", "flops", cwd=tmp_path)
    assert "| ViT-B/16 |     224 |              0.250 |      5.373 |" in text
    assert not (tmp_path / "flops.png").exists()  # matplotlib comes with an extra
    assert "CrossMAE, release" in run(python, "-m", "crossmae", *BENCH, cwd=tmp_path)
    assert {path.name for path in (tmp_path / "bench").iterdir()} == {"decode.json", "decode.md"}
    assert "cross_attention" in run(python, "-m", "crossmae_kernels.info", cwd=tmp_path)
    script = subprocess.run([python.with_name("crossmae"), "pretrain"], capture_output=True, text=True, check=False)
    assert script.returncode == 1
    assert "pip install 'crossmae-kernels[train]'" in script.stderr


def test_figures(wheel, tmp_path):
    python = environment(tmp_path / "figures", wheel, "figures")
    run(python, "-m", "crossmae", "flops", "--figure", "cost.png", cwd=tmp_path)
    run(python, "-m", "crossmae", *BENCH, cwd=tmp_path)
    for picture in ("cost.png", "bench/decode.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_training(wheel, tmp_path):
    python = environment(tmp_path / "train", wheel, "train")
    words = ["pretrain", "--recipe", "cpu_trial", "--steps", "2", "--data.workers", "0", "--out", "trial"]
    run(python, "-m", "crossmae", *words, cwd=tmp_path)
    assert (tmp_path / "trial" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("extra", "code"), [("detect", REQUIRE), ("interpreter", "import crossmae_kernels, ml_dtypes")]
)
def test_other_extras(extra, code, wheel, tmp_path):
    extras = ("detect", "train") if extra == "detect" else (extra,)
    run(environment(tmp_path / extra, wheel, *extras), "-c", code, cwd=tmp_path)
