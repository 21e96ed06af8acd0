"""Commands in documents: all are taken by the parsers of what they start; those that need no data of anybody's run."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib

import doc_blocks
import pytest

from crossmae.commands.cli import _COMMANDS, main
from crossmae.commands.options import arguments_of, parser_of, with_underscores

ROOT = doc_blocks.ROOT
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")))
COMMANDS = [command for page in PAGES for command in doc_blocks.commands_of(page)]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]

# In a folder with a tiny model.safetensors, which also is run/model.safetensors, and a photograph called cat.jpg.
QUICK = [
    "crossmae flops",
    "crossmae convert run/model.safetensors vit_timm --to timm",
    "crossmae reconstruct cat.jpg --checkpoint model.safetensors",
]
SLOW = [
    "crossmae check",
    "crossmae check --interpret",
    "crossmae detect --recipe shapes_trial --out trial",
    "crossmae pretrain --recipe cpu_trial --out trial",
]


def parsed(words):
    """Options of ``crossmae`` as its own parser reads them, and with them the arguments of the command."""
    parser = parser_of(_COMMANDS)
    chosen = parser.parse_args(list(map(with_underscores, words)))
    return arguments_of(_COMMANDS[chosen.subcommand][0], parser.instantiate(chosen)[chosen.subcommand])


def check_crossmae(words):
    if words == ["--print_completion=shtab-bash"]:  # tested with the command line
        return
    if words == ["--help"] or words[1:] in ([], ["--help"]):  # spoken of, not run
        assert words[0] in (*_COMMANDS, "--help")
    else:
        parsed(words)


def check_module(words):
    """``python -m``: the module is there, and its help knows the options."""
    if words[0] == "crossmae":
        check_crossmae(words[1:] or ["--help"])
        return
    assert importlib.util.find_spec(words[0]) is not None
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    if options:
        shown = subprocess.run([sys.executable, "-m", words[0], "--help"], capture_output=True, text=True, cwd=ROOT)
        assert set(options) <= set(re.findall(r"--[\w-]+", shown.stdout))


def check_pytest(words):
    """Files and marks are there."""
    marks = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]["markers"]
    assert set(marks) <= {mark.partition(":")[0] for mark in known}
    assert all((ROOT / word).exists() for word in words if word.endswith(".py"))


def check(words):
    """Raise, or exit, if a command would be refused for how it is written."""
    program, *rest = words
    if program == "crossmae":
        check_crossmae(rest)
    elif program in ("python", "torchrun"):
        module = rest[rest.index("-m") + 1 :]
        check_pytest(module[1:]) if module[0] == "pytest" else check_module(module)
    elif program == "sbatch":
        assert (ROOT / rest[0]).is_file()
        parsed(["pretrain", *rest[1:]])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert rest[0] in targets
    elif program == "pip":
        name, extras = re.fullmatch(r"(\.|[\w-]+)(?:\[([\w,]+)\])?", rest[-1]).groups()
        assert set(extras.split(",") if extras else []) <= set(EXTRAS)
        assert name in (".", "crossmae-kernels", "shtab")
    else:
        assert program == "pytest"
        check_pytest(rest)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_taken_by_its_parser(words):
    check(words)


def test_there_are_commands_of_every_kind():
    assert {command.values[0][0] for command in COMMANDS} == set(doc_blocks.PROGRAMS)
    written = {" ".join(command.values[0]) for command in COMMANDS}
    assert {*QUICK, *SLOW} <= written


@pytest.mark.parametrize(
    "words",
    [
        ["crossmae", "pretrain", "--recipes", "vit_base"],
        ["crossmae", "pretrain", "--recipe", "vit_bass"],
        ["crossmae", "fly"],
        ["torchrun", "-m", "crossmae", "pretrain", "--epoch", "x"],
        ["python", "-m", "crossmae_kernels.inform"],
        ["python", "-m", "crossmae_kernels.check", "--interpreted"],
        ["python", "-m", "pytest", "-m", "quick"],
        ["sbatch", "scripts/pretrain.slurm", "--fsdp"],
        ["make", "dem"],
        ["pip", "install", ".[trian]"],
    ],
)
def test_a_wrong_command_is_noticed(words):
    with pytest.raises((SystemExit, AssertionError, OSError)):
        check(words)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page):
    assert set(doc_blocks.labels_of(page)) <= {"bash", "python", "bibtex", "text"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of somebody who has a model and a photograph."""
    from PIL import Image
    from skimage import data

    import crossmae

    model = crossmae.create_model("crossmae_vit_tiny_patch4")
    for path in (tmp_path / "model.safetensors", tmp_path / "run" / "model.safetensors"):
        path.parent.mkdir(exist_ok=True)
        crossmae.save(model, path)
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", QUICK)
def test_a_quick_command_runs(command, folder, capsys):
    assert main(command.split()[1:]) == 0
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_a_slow_command_runs(command, folder):
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
