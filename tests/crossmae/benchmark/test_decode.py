"""Decoders timed in turn: who competes, what is counted, whose times are compared, what ``crossmae bench`` leaves."""

import json
import re

import pytest
import torch

from crossmae.benchmark import decode, report
from crossmae.benchmark.decode import Row, Setting, entrants, measure
from crossmae.commands.cli import main
from crossmae.flops import decoder_macs, executed_decoder_macs
from crossmae.model.config import named_config

SHAPE = {"encoder_depth": 1, "decoder_depth": 1}
OURS, MAE = (named_config(f"{family}_vit_tiny_patch4", 16, **SHAPE) for family in ("crossmae", "mae"))
WORDS = ["bench", "--model", "crossmae_vit_tiny_patch4", "--image-size", "16", "--batch", "2", "--rounds", "1"]


def setting(**values):
    return Setting(OURS, MAE, **{"prediction_ratios": (0.25, 0.75), "batch": 2, "rounds": 1, **values})


def timed_as(monkeypatch, seconds):
    """Let every contender take the seconds that ``seconds`` says of its name, without running it."""
    monkeypatch.setattr(
        decode, "interleaved_medians", lambda calls, rounds, progress: {name: seconds(name) for name in calls}
    )


def test_who_competes():
    chosen = setting(depths=(2, 1), formulations=("ours", "release"), executions=("eager", "compiled"))
    found = entrants(chosen)
    assert [e.name for e in found[:4]] == [
        "MAE, ours, 1 blocks", "MAE, reference, 1 blocks",
        "MAE, ours, compiled, 1 blocks", "MAE, reference, compiled, 1 blocks",
    ]  # fmt: skip
    assert len(found) == 4 + 2 * 2 * 2 * 2
    assert len(set(found)) == len({e.name for e in found}) == len(found)


def test_counts_are_those_of_the_closed_form():
    rows = measure(setting(formulations=("ours", "reference", "release")))
    assert len(rows) == 2 + 3 * 2
    assert all(row.forward > 0 and row.both > 0 and row.saved > 0 and not row.failure for row in rows)
    for row in rows:
        config = MAE if row.decoder == "MAE" else OURS
        assert row.macs == decoder_macs(config, row.predicts)
        assert row.fewer == decoder_macs(MAE) / row.macs
        executed = row.macs if row.means == "release" else executed_decoder_macs(config, 2, row.predicts) / 2
        assert row.counted == executed


def test_speedups_are_over_mae_by_the_same_means(monkeypatch):
    def seconds(name):
        served = 1.0 if "ours" in name else 10.0
        of_mae = 8.0 if name.startswith("MAE") else 2.0
        return served * of_mae * (3 if "backward" in name else 1) * (0.5 if "release" in name else 1)

    timed_as(monkeypatch, seconds)
    rows = measure(setting(prediction_ratios=(0.25,), formulations=("ours", "reference", "release")))
    found = {(row.decoder, row.means): (row.forward, row.both, row.forward_speedup, row.both_speedup) for row in rows}
    assert found == {
        ("MAE", "ours"): (8, 24, 1, 1),
        ("MAE", "reference"): (80, 240, 1, 1),
        ("CrossMAE", "ours"): (2, 6, 4, 4),
        ("CrossMAE", "reference"): (20, 60, 4, 4),
        ("CrossMAE", "release"): (10, 30, 8, 8),  # over MAE in plain PyTorch
    }


def test_products_are_in_the_dtype_asked_for(monkeypatch):
    seen = []
    forward = decode.CrossMAEDecoder.forward

    def spy(self, maps, masking):
        result = forward(self, maps, masking)
        seen.append((maps[0].dtype, result.dtype))
        return result

    monkeypatch.setattr(decode.CrossMAEDecoder, "forward", spy)
    timed_as(monkeypatch, lambda name: 1.0)
    measure(setting(prediction_ratios=(0.25,), dtype=torch.bfloat16))
    assert set(seen) == {(torch.float32, torch.bfloat16)}


def test_compiled_decoders_are_compiled_each_for_itself(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: compiled.append(call) or call)
    timed_as(monkeypatch, lambda name: 1.0)
    rows = measure(setting(executions=("eager", "compiled")))
    assert len(compiled) == 3
    assert [row.means for row in rows if row.saved is None] == ["ours, compiled"] * 3


def test_what_fails_has_its_reason_and_the_others_their_times(monkeypatch, tmp_path, capsys):
    def full(*arguments):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(decode, "release_decode", full)
    words = [*WORDS, "--prediction-ratios", "0.25", "--out", str(tmp_path)]
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "- not timed: CrossMAE, release, 4 blocks, predicts 0.25: out of memory" in text
    rows = json.loads((tmp_path / "decode.json").read_text())["rows"]
    assert [row["both"] is None for row in rows] == [False, False, False, True]


def test_the_command_leaves_table_numbers_and_picture(tmp_path, capsys):
    words = [*WORDS, "--depths", "1", "2", "--prediction-ratios", "0.25", "--formulations", "ours"]
    assert main([*words, "--out", str(tmp_path / "there")]) == 0
    printed = capsys.readouterr()
    text = (tmp_path / "there" / "decode.md").read_text()
    assert text in printed.out
    assert text.startswith("crossmae_vit_tiny_patch4, 16 x 16 px, batch 2, float32; CPU, ")
    found = json.loads((tmp_path / "there" / "decode.json").read_text())
    assert [(row["decoder"], row["blocks"]) for row in found["rows"]] == [("MAE", 4), ("CrossMAE", 1), ("CrossMAE", 2)]
    assert (found["about"]["rounds"], found["about"]["torch"]) == (1, torch.__version__)
    assert (tmp_path / "there" / "decode.png").read_bytes().startswith(b"\x89PNG")
    lines = printed.err.splitlines()
    assert [re.sub(r"^ *\d+ s  ", "", line).split(",")[0] for line in lines] == [
        "1 of 3", "2 of 3", "3 of 3", "warm-up", "round 1 of 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--batch", "0"], "batch and rounds must be positive, got 0 and 1"),
        (["--model", "mae_vit_tiny_patch4"], "model must be a CrossMAE, .*got mae_vit_tiny_patch4"),
        (["--model", "resnet"], "there is no model 'resnet'; choose from .*"),
        (["--prediction-ratios", "0.25", "0.9"], r"prediction_ratio must lie in \(0, mask_ratio = 0.75\], got 0.9"),
        (["--depths", "0"], "Config: decoder_depth must be a positive integer, got 0"),
        (["--executions", "graph"], "a CUDA graph needs a CUDA device, got cpu"),
        (["--device", "toaster"], "device must be .*, got 'toaster'"),
        (["--device", "cuda:99"], "device cuda:99 cannot be used here: .*"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_made(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*WORDS, "--device", "cpu", *words]) == 1
    assert re.fullmatch(f"crossmae bench: {line}\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_the_releases_formulation_is_refused_where_it_computes_something_else():
    one_map = named_config("crossmae_vit_tiny_patch4", 16, feature_maps=None)
    with pytest.raises(ValueError, match="the release's formulation needs inter-block attention"):
        Setting(one_map, MAE, formulations=("release",))


def test_table_of_what_was_not_measured():
    text = report.table([Row("MAE", "ours", 8, 0.75, 5e9, 1.0, forward=0.5), Row("CrossMAE", "ours", 12, 0.25, 2e6)])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[0] == ["decoder", "blocks", "predicts", "GMAC per image", "times fewer MACs than MAE", "forward, ms"]
    assert rows[2:] == [
        ["MAE, ours", "8", "all", "5.000", "1.00", "500"],
        ["CrossMAE, ours", "12", "0.25", "0.002", "", ""],
    ]
    with pytest.raises(ValueError, match="nothing was timed"):
        report.draw([Row("MAE", "ours", 8, 0.75, 5e9)], "", "unwritten.png")
