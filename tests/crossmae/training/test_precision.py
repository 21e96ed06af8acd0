"""What precision ``auto`` stands for."""

import json
from dataclasses import replace

import pytest
import torch
from pretraining import into, small

from crossmae.training import precision
from crossmae.training.plan import make_plan
from crossmae.training.run import pretrain


def plan_of(devices=1, **settings):
    return make_plan(small(precision="auto", **settings), 64, devices)


def taking(monkeypatch, **seconds):
    """Let a step take so long, without a measurement."""
    monkeypatch.setattr(precision, "device_kind", lambda: "cpu")
    monkeypatch.setattr(precision, "interleaved_medians", lambda contenders, rounds: seconds)


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.5, "bfloat16"), (0.95, "float32"), (2.0, "float32")])
def test_bfloat16_is_taken_where_it_is_faster_and_said_aloud(monkeypatch, capsys, bfloat16, chosen):
    taking(monkeypatch, float32=1.0, bfloat16=bfloat16)
    assert precision.settled(plan_of()) == chosen
    times = f"1,000 ms in float32 and {1000 * bfloat16:,.0f} ms in bfloat16"
    assert capsys.readouterr().out == f"Precision: {chosen}; on this CPU a step takes {times}.\n"


def test_steps_are_measured_in_both_precisions_and_leave_random_numbers_alone(monkeypatch):
    dtypes, forward = set(), precision.MaskedAutoencoder.forward

    def noting(self, *arguments):
        output = forward(self, *arguments)
        dtypes.add(output.prediction.dtype)
        return output

    monkeypatch.setattr(precision, "device_kind", lambda: "cpu")
    monkeypatch.setattr(precision.MaskedAutoencoder, "forward", noting)
    before = torch.get_rng_state()
    assert precision.settled(plan_of()) in ("float32", "bfloat16")
    assert torch.equal(torch.get_rng_state(), before)
    assert dtypes == {torch.float32, torch.bfloat16}


def test_a_precision_that_is_named_is_kept_without_a_word(capsys):
    plan = plan_of()
    named = replace(plan, recipe=replace(plan.recipe, precision="float64"))
    assert precision.settled(named) == "float64"
    assert capsys.readouterr().out == ""


def test_an_accelerator_takes_bfloat16(monkeypatch):
    monkeypatch.setattr(precision, "device_kind", lambda: "cuda")
    assert precision.settled(plan_of(devices=2)) == "bfloat16"


def test_processes_on_a_cpu_do_not_measure_each_for_itself(monkeypatch):
    monkeypatch.setattr(precision, "device_kind", lambda: "cpu")
    with pytest.raises(ValueError, match="measured by a single process, but there are 2; use bfloat16 or float32"):
        precision.settled(plan_of(devices=2))


def test_a_run_goes_on_as_it_began(tmp_path, monkeypatch):
    taking(monkeypatch, float32=2.0, bfloat16=1.0)
    pretrain(small(precision="auto", steps=2), into(tmp_path))
    assert json.loads((tmp_path / "recipe.json").read_text())["precision"] == "bfloat16"
    taking(monkeypatch, float32=1.0, bfloat16=2.0)
    pretrain(small(precision="auto", steps=3), into(tmp_path))
    assert json.loads((tmp_path / "recipe.json").read_text())["precision"] == "bfloat16"
