"""Decoders timed in turn: who competes, what is counted, whose times are compared, what ``crossmae bench`` leaves."""

import json
import re
import sys

import pytest
import torch

from crossmae.benchmark import decode, posing, report
from crossmae.benchmark.ceilings import Ceilings, ceilings
from crossmae.benchmark.checking import WrongError
from crossmae.benchmark.decode import Row, measure
from crossmae.benchmark.posing import Inputs
from crossmae.benchmark.setting import Setting, entrants
from crossmae.commands.cli import main
from crossmae.flops import decoder_macs, encoder_macs, executed_decoder_macs
from crossmae.model.config import named_config
from crossmae.model.decoders import CrossMAEDecoder

SHAPE = {"encoder_depth": 1, "decoder_depth": 1}
OURS, MAE = (named_config(f"{family}_vit_tiny_patch4", 16, **SHAPE) for family in ("crossmae", "mae"))
WORDS = ["bench", "--model", "crossmae_vit_tiny_patch4", "--image-size", "16", "--batch", "2", "--rounds", "1"]


def setting(**values):
    return Setting(OURS, MAE, **{"prediction_ratios": (0.25, 0.75), "batch": 2, "rounds": 1, **values})


def timed_as(monkeypatch, seconds):
    """Let every contender take the seconds that ``seconds`` says of its name, without running it."""
    monkeypatch.setattr(
        decode, "interleaved_times", lambda calls, rounds, progress: {name: [seconds(name)] * rounds for name in calls}
    )


def test_rounds_that_disagree_are_told_of(monkeypatch):
    def told(slowest):
        monkeypatch.setattr(
            decode, "interleaved_times", lambda calls, *_: {name: [1.0, 1.0, slowest] for name in calls}
        )
        lines = []
        measure(setting(prediction_ratios=(0.25,)), tell=lines.append)
        return [line for line in lines if line.startswith("warning")]

    assert told(1.4) == []
    (line,) = told(2.1)
    assert "rounds of 4 of 4 timings differ by more than 1.5 times" in line
    assert "by 2.1: other work on this machine?" in line


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
    forward = CrossMAEDecoder.forward

    def spy(self, maps, masking):
        result = forward(self, maps, masking)
        seen.append((maps[0].dtype, result.dtype))
        return result

    monkeypatch.setattr(CrossMAEDecoder, "forward", spy)
    timed_as(monkeypatch, lambda name: 1.0)
    measure(setting(prediction_ratios=(0.25,), dtype=torch.bfloat16))
    assert set(seen) == {(torch.float32, torch.bfloat16), (torch.float64, torch.float64)}  # to be judged


def test_compiled_decoders_are_compiled_each_for_itself(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, dynamic, mode=None: compiled.append(mode) or call)
    timed_as(monkeypatch, lambda name: 1.0)
    rows = measure(setting(executions=("eager", "compiled", "max-autotune")))
    assert sorted(compiled, key=str) == [None] * 3 + ["max-autotune-no-cudagraphs"] * 3
    assert {row.means for row in rows if row.saved is None} == {"ours, compiled", "ours, max-autotune"}


def test_a_step_trains_the_whole_model_and_leaves_its_weights(monkeypatch):
    stepped = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: stepped.append(self) or step(self))
    chosen = setting(part="step", prediction_ratios=(0.25,), formulations=("ours", "release"), rounds=2)
    mae, _, ours, release = measure(chosen)
    for row, config in ((mae, MAE), (ours, OURS)):
        assert row.macs == encoder_macs(config) + decoder_macs(config, row.predicts)
        assert row.counted == encoder_macs(config) + executed_decoder_macs(config, 2, row.predicts) / 2
    assert ours.forward > 0 < ours.both
    assert not release.failure
    assert len(stepped) == 4 * (1 + 1 + 2)  # for the check, to warm up, and in each round
    assert all(optimizer.param_groups[0]["lr"] == 0 for optimizer in stepped)


@pytest.mark.parametrize(("part", "result"), [("decoder", "out"), ("step", "out")])
def test_whoever_computes_something_else_is_not_timed(part, result, monkeypatch):
    name = "release_decode" if part == "decoder" else "release_model_loss"
    right = getattr(posing, name)
    monkeypatch.setattr(posing, name, lambda *arguments: 1.1 * right(*arguments))
    (*others, release) = measure(setting(part=part, prediction_ratios=(0.25,), formulations=("ours", "release")))
    assert release.failure.startswith(f"wrong: {result} is off by 0.1 of its root mean square, allowed is ")
    assert release.both is None
    assert all(row.both for row in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spoilt", ["out", "d maps[1]", "d parameters"])
def test_every_result_is_judged_in_every_dtype(dtype, spoilt):
    chosen = setting(dtype=dtype)
    posed = Inputs(chosen).posed(entrants(chosen)[-1])
    judge = posed.judge()
    out, gradients = posed.gradients(posed.by("ours"))
    assert ", allowed is " in judge.require(posed.results(out, gradients))
    maps = len(posed.inputs)
    wrong = {
        "out": (out + 0.1, gradients),
        "d maps[1]": (out, (gradients[0], gradients[1] * float("nan"), *gradients[2:])),
        "d parameters": (out, (*gradients[:maps], *(0.9 * gradient for gradient in gradients[maps:]))),
    }
    with pytest.raises(WrongError, match=f"wrong: {re.escape(spoilt)} is off by "):
        judge.require(posed.results(*wrong[spoilt]))


def test_the_roofline_is_the_larger_of_bytes_and_products():
    assert Ceilings(copy=100.0, product=1000.0).least(moved=50.0, flops=100.0) == 0.5
    assert Ceilings(copy=100.0, product=1000.0).least(moved=1.0, flops=100.0) == 0.1
    mae, ours = measure(setting(prediction_ratios=(0.25,)), Ceilings(copy=1e30, product=1.0))
    assert (mae.least, ours.least) == (2 * 6 * mae.macs, 2 * 6 * ours.macs)
    _, ours = measure(setting(prediction_ratios=(0.25,)), Ceilings(copy=1.0, product=1e30))
    # Forward and backward: two images, two maps of a class token and 4 patches of 96, 4 predicted patches of 48.
    assert ours.least == 3 * 2 * 4 * (2 * 5 * 96 + 4 * 48)


@pytest.mark.parametrize(("linear", "fastest"), [(0.25, 0.25), (2.0, 0.5)])
def test_what_a_machine_reaches_is_what_its_fastest_rounds_reached(linear, fastest, monkeypatch):
    def timed(contenders, rounds):
        for run in contenders.values():
            run()
        assert rounds > 3
        return {"copy": [4.0, 2.0, 3.0], "product": [1.0, 0.5, 0.75], "linear": [1.0, linear]}

    monkeypatch.setattr("crossmae.benchmark.ceilings.interleaved_times", timed)
    # A copy of 16 x 64 rows of 64 numbers of 4 bytes, read and written, and a product of 64 x 64.
    expected = Ceilings(copy=2 * 16 * 64 * 64 * 4 / 2.0, product=2 * 64**3 / fastest)
    assert ceilings(torch.device("cpu"), torch.float32, 64) == expected


def test_what_fails_has_its_reason_and_the_others_their_times(monkeypatch, tmp_path, capsys):
    def full(*arguments):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(posing, "release_decode", full)
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
        "measuring what a copy and a product reach", "1 of 3", "2 of 3", "3 of 3", "warm-up", "round 1 of 1",
    ]  # fmt: skip


def test_no_picture_is_announced_where_none_can_be_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = [*WORDS, "--depths", "1", "--prediction-ratios", "0.25", "--formulations", "ours", "--out", str(tmp_path)]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith(f"\nTable and numbers: {tmp_path}/decode.md, {tmp_path}/decode.json\n")
    assert "crossmae bench: no picture: needs matplotlib" in printed.err


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
