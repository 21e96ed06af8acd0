"""The command line as a user meets it."""

import re
import runpy
import shutil
import subprocess

import pytest

from crossmae.commands.cli import _COMMANDS, main
from crossmae.model.config import named_config
from crossmae.training.data import bundled


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_tells_what_a_command_does_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"Example: crossmae {command}" in text
    assert "default" in text


def test_help_without_a_command_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Example: crossmae bench" in capsys.readouterr().out


def completed(script, *words):
    """What bash offers for the last of some words."""
    ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_crossmae; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", ask, "bash", script, *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_commands_options_and_values(tmp_path, monkeypatch, capsys):
    pytest.importorskip("shtab")
    monkeypatch.setenv("JSONARGPARSE_ADD_PRINT_COMPLETION_ARGUMENT", "true")
    with pytest.raises(SystemExit):
        main(["--print_completion=shtab-bash"])
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    script = str(tmp_path / "completion.bash")
    assert completed(script, "crossmae", "pre") == ["pretrain"]
    assert completed(script, "crossmae", "flops", "--f") == ["--figure"]
    assert "bfloat16" in completed(script, "crossmae", "pretrain", "--precision", "")


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert set(_COMMANDS) <= set(text.split())


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["crossmae", "flops", "--figure", "no/cost.png"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("crossmae", run_name="__main__")
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("crossmae flops: cannot write no/cost.png")


def test_flops_prints_the_table_and_draws_it(tmp_path, capsys):
    assert main(["flops", "--figure", str(tmp_path / "cost.png")]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if re.match(r"\| ViT-B/16 +\| +224 \| +0.250", line))
    assert [cell.strip() for cell in row.split("|")[4:-1]] == ["5.373", "2.069", "2.597", "10.110", "4.077", "2.480"]
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_failures_are_one_line(tmp_path, capsys):
    assert main(["flops", "--figure", str(tmp_path / "no" / "cost.png")]) == 1
    assert re.fullmatch(r"crossmae flops: cannot write .*: there is no folder .*\n", capsys.readouterr().err)
    assert main(["demo", "--steps", "1", "--out", str(tmp_path)]) == 1
    assert "steps must be at least 4, got 1" in capsys.readouterr().err


def test_options_may_be_spelled_with_hyphens(capsys):
    words = ["pretrain", "--recipe", "cpu_trial", "--dry-run", "--batch-size=64", "--model-options.decoder-depth", "2"]
    assert main(words) == 0
    hyphens = capsys.readouterr().out
    assert main([word if word == "--recipe" else word.replace("-", "_").replace("__", "--", 1) for word in words]) == 0
    assert hyphens == capsys.readouterr().out
    assert "64 = 1 device(s)" in hyphens


WORD_AS_NUMBER = ["pretrain", "--data.nodata", "abc"]


@pytest.mark.parametrize(
    "arguments", [["fly"], ["flops", "--size", "3"], ["demo", "--steps", "many"], WORD_AS_NUMBER, []]
)
def test_unknown_words_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert re.fullmatch(r"crossmae.*: error: .*; see crossmae.* --help\n", capsys.readouterr().err)


def test_demo_in_a_few_steps(tmp_path, capsys, monkeypatch):
    for name, smaller in (("BATCH", 16), ("EVALUATIONS", 2), ("BASE_BATCH", 1)):
        monkeypatch.setattr(f"crossmae.commands.demo.{name}", smaller)
    monkeypatch.setattr("crossmae.training.study.BATCH", 16)
    # How long ViT-B's decoders take is measured with tiny ones.
    tiny = {f"{family}_vit_base_patch16": named_config(f"{family}_vit_tiny_patch4") for family in ("mae", "crossmae")}
    monkeypatch.setattr("crossmae.commands.demo.named_config", tiny.get)
    # Probes of all 1,797 digits take most of the time; how well they work is tested elsewhere.
    few = tuple(
        bundled.ImagesInMemory(part.images[:count], part.labels[:count], part.classes)
        for part, count in zip(bundled._digits(), (200, 60), strict=True)
    )
    monkeypatch.setattr(bundled, "_digits", lambda: few)
    before = tmp_path / "out" / "MAE"
    before.mkdir(parents=True)
    (before / "log.jsonl").write_text('{"step": 4, "knn": 1.0, "linear": 1.0}\n')  # of a run to its end: made anew
    assert main(["demo", "--steps", "4", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"reconstructions.png", "ratios.png", "learning.png", "results.md", "MAE", "CrossMAE"}
    for row in ("raw pixels", "untrained encoder", "MAE encoder", "CrossMAE encoder", "ViT-B/16"):
        assert row in text
    assert len([line for line in (before / "log.jsonl").read_text().splitlines() if '"knn"' in line]) == 2
    assert (tmp_path / "out" / "results.md").read_text() in text


def test_check_hands_its_words_and_verdict_on(monkeypatch):
    seen = []
    monkeypatch.setattr("crossmae_kernels.check.main", lambda words: seen.append(words) or 1)
    assert main(["check", "--json", "--interpret"]) == 1
    assert main(["check"]) == 1
    assert seen == [["--json", "--interpret"], []]
