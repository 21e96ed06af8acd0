"""Detection runs that take minutes: killed, shared by processes, and to the end of the trial."""

import signal
import time
from pathlib import Path

import pytest
import torch
from detecting import few_shapes, into, small, state, train
from processes import run_as_torchrun_would, start

from crossmae.commands.cli import main
from crossmae.detection.checkpoint import load_detector
from crossmae.detection.opening import open_evaluation
from crossmae.detection.recipe import DetectionData
from crossmae.training.monitor import LOG, read_log

pytestmark = pytest.mark.slow


def _train(folder, **changes):
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_shapes(monkeypatch)
        train(small(steps=12), into(folder, **changes))


@pytest.mark.parametrize("step", [2, 5, 8])
def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path, step):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(_train, whole)
    process.join()
    assert process.exitcode == 0
    process = start(_train, killed)
    while process.is_alive() and not any(entry.get("step", 0) >= step for entry in read_log(killed / LOG)):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process = start(_train, killed)
    process.join()
    assert process.exitcode == 0
    expected, found = state(whole), state(killed)
    assert found.pop("losses") == expected.pop("losses")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_processes_share_training_and_evaluation(tmp_path):
    """All agree on the model, and on what one process finds with it."""
    assert run_as_torchrun_would(2, _train, tmp_path) == [0, 0]
    [judged] = [entry for entry in read_log(tmp_path / LOG) if "box AP" in entry]
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_shapes(monkeypatch)
        evaluation = open_evaluation(
            DetectionData(evaluation="shapes"), 3, ((1, "disc"), (3, "square"), (7, "triangle"))
        )
    detector = load_detector(tmp_path)
    alone = evaluation.score(evaluation.detections(detector, _OneProcess()))
    for name, value in judged.items():
        if name != "step":
            assert alone[name] == pytest.approx(value, abs=1e-6), name


def test_the_trial_on_shapes_learns(tmp_path, monkeypatch):
    """Untrained it has an average precision below .005; after its 1,000 steps, some minutes, above .3."""
    monkeypatch.chdir(tmp_path)
    assert main(["detect", "--recipe", "shapes_trial", "--steps", "1", "--out", "untrained"]) == 0
    assert main(["detect", "--recipe", "shapes_trial", "--out", "trial"]) == 0
    before, after = ([e for e in read_log(Path(run) / LOG) if "box AP" in e][-1] for run in ("untrained", "trial"))
    for kind in ("box", "mask"):
        assert before[f"{kind} AP"] < 0.005
        assert after[f"{kind} AP"] > 0.3


class _OneProcess:
    """What an evaluation asks of Fabric."""

    global_rank, world_size, is_global_zero, device = 0, 1, True, torch.device("cpu")
