"""Several processes over gloo: the same losses and weights as one, however the model is shared."""

import os
import shutil
import signal

import pytest
from pretraining import into, losses, small, weights
from processes import run_as_torchrun_would, start
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from crossmae.commands.cli import main
from crossmae.training.run import pretrain
from crossmae.training.step import Stepper

STEPS, LATER = 6, 10


def recipe(precision, steps=STEPS):
    return small(steps=steps, precision=precision, learning_rate=1e-3, warmup=0.0)


def with_two_processes(recipe, options):
    assert run_as_torchrun_would(2, pretrain, recipe, options) == [0, 0]


def largest_difference(folder, other):
    ours, theirs = losses(folder), losses(other)
    assert ours.keys() == theirs.keys()
    a, b = weights(folder), weights(other)
    of_weights = max(float((a[name] - b[name]).abs().max()) for name in a)
    return max(abs(ours[step] - theirs[step]) for step in ours), of_weights


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folders of runs in one process, by precision."""
    folders = {}
    for precision in ("float64", "float32"):
        folders[precision] = tmp_path_factory.mktemp(precision)
        pretrain(recipe(precision), into(folders[precision]))
    return folders


@pytest.mark.parametrize(
    ("precision", "strategy"),
    [
        ("float64", "ddp"),
        ("float64", "fsdp"),
        ("float32", "ddp"),
        pytest.param("float32", "fsdp", marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_as_one(one, tmp_path, strategy, precision):
    with_two_processes(recipe(precision), into(tmp_path, strategy=strategy))
    of_losses, of_weights = largest_difference(one[precision], tmp_path)
    if precision == "float64":
        assert of_losses < 1e-10
        assert of_weights < 1e-10
    else:
        # Sums in another order: some roundings of values around 1. AdamW divides a gradient by its own size, so where a
        # gradient is rounding alone, a weight may differ by a whole step of the learning rate, each time.
        assert of_losses < 20 * 2**-24
        assert of_weights < STEPS * 1e-3


def test_a_sharded_run_goes_on_in_one_process(one, tmp_path):
    moved, still = tmp_path / "moved", tmp_path / "still"
    with_two_processes(recipe("float64"), into(moved, strategy="fsdp"))
    shutil.copytree(one["float64"], still)
    for folder in (moved, still):
        pretrain(recipe("float64", LATER), into(folder))
    of_losses, of_weights = largest_difference(moved, still)
    assert of_losses < 1e-10
    assert of_weights < 1e-10


def test_a_run_in_one_process_goes_on_in_two(one, tmp_path):
    moved, still = tmp_path / "moved", tmp_path / "still"
    for folder in (moved, still):
        shutil.copytree(one["float64"], folder)
    pretrain(recipe("float64", LATER), into(still))
    with_two_processes(recipe("float64", LATER), into(moved, strategy="ddp"))
    assert max(largest_difference(moved, still)) < 1e-10


def terminated_at_step(recipe, options):
    """A run whose second process alone is told to stop, once losses are logged."""
    train_step = Stepper.train_step

    def signalled(stepper, batches):
        if stepper.step == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(stepper, batches)

    Stepper.train_step = signalled
    pretrain(recipe, options)


def test_a_signal_to_one_process_stops_all_at_the_same_step(one, tmp_path):
    assert run_as_torchrun_would(2, terminated_at_step, recipe("float64", LATER), into(tmp_path)) == [0, 0]
    assert list(losses(tmp_path)) == list(range(6))  # told in the fifth step, agreed upon after the sixth
    with_two_processes(recipe("float64", LATER), into(tmp_path))
    assert list(losses(tmp_path)) == list(range(LATER))


def torchrun(*words):
    """What ``torchrun`` does with these words, but its processes are forks of this one, which has imported PyTorch."""
    config, program, arguments = config_from_args(parse_args(["--start-method", "fork", *words]))
    assert program == "crossmae"
    assert elastic_launch(config, main)(arguments) == {0: 0, 1: 0}


def test_torchrun(one, tmp_path):
    (tmp_path / "recipe.json").write_text(recipe("float64").to_json())
    words = ["--recipe", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run"), "--log_every", "3"]
    words += ["--save_every", "1000", "--probe_every", "1000", "--pictures_every", "1000", "--probe_images", "60"]
    launch = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nproc-per-node", "2"]
    launch += ["--log-dir", str(tmp_path / "logs"), "--redirects", "1"]
    process = start(torchrun, *launch, "--no-python", "crossmae", "pretrain", *words)
    process.join()
    assert process.exitcode == 0
    (printed,) = (tmp_path / "logs").glob("*/attempt_0/0/stdout.log")
    assert "2 device(s)" in printed.read_text()
    assert max(largest_difference(one["float64"], tmp_path / "run")) < 1e-10
