"""Whole runs: what they leave, how they go on, and what they survive."""

import errno
import json
import os
import random
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretraining import into, losses, small, stepper_of, weights
from processes import start

import crossmae
from crossmae.training import loop, run_state
from crossmae.training.data.batches import Batch
from crossmae.training.data.config import DataConfig
from crossmae.training.evaluation import Evaluation
from crossmae.training.monitor import Monitor, read_log
from crossmae.training.nonfinite import find_nonfinite
from crossmae.training.run import pretrain
from crossmae.training.run_state import Checkpoints
from crossmae.training.step import Stepper


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    model = pretrain(small(), into(folder))
    return folder, model


def same(folder, other):
    ours, theirs = weights(folder), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def steps_kept(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def test_what_a_run_leaves(uninterrupted):
    folder, model = uninterrupted
    assert list(losses(folder)) == list(range(12))
    loaded = crossmae.load(folder / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert loaded.config.pixel_mean is not None
    summaries = [entry for entry in read_log(folder / "log.jsonl") if "seconds" in entry]
    assert [entry["step"] for entry in summaries][-1] == 12
    assert [entry["seconds"] for entry in summaries] == sorted(entry["seconds"] for entry in summaries)
    assert json.loads((folder / "recipe.json").read_text())["steps"] == 12
    assert list((folder / "tensorboard").iterdir())
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    assert any(name.startswith("reconstructions") for name in pictures)
    assert any(name.startswith("mixing") for name in pictures)
    (probe,) = [entry for entry in read_log(folder / "log.jsonl") if "knn" in entry]
    assert 0 <= probe["knn"] <= 1
    assert 0 <= probe["linear"] <= 1


def test_a_run_learns(tmp_path):
    pretrain(small(steps=40, learning_rate=3e-3, batch_size=32), into(tmp_path, save_every=1000))
    values = list(losses(tmp_path).values())
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_which_goes_on_as_if_it_had_not(uninterrupted, tmp_path, monkeypatch, number):
    train_step = Stepper.train_step

    def signalled(stepper, batches):
        if stepper.step == 6:
            os.kill(os.getpid(), number)
        return train_step(stepper, batches)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "train_step", signalled)
        pretrain(small(), into(tmp_path))
    assert signal.getsignal(number) is before
    assert list(losses(tmp_path)) == list(range(7))
    assert max(steps_kept(tmp_path)) == 7
    pretrain(small(), into(tmp_path))
    assert losses(tmp_path) == losses(uninterrupted[0])
    assert same(tmp_path, uninterrupted[0])


@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_steps(tmp_path, times):
    steps = 20 + 10 * times  # so that no run ends before it is killed
    recipe = small(steps=steps)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(pretrain, recipe, into(whole))
    process.join()
    assert process.exitcode == 0
    chance, kills = random.Random(0), 0
    while kills < times:
        process = start(pretrain, recipe, into(killed))
        target = max(losses(killed), default=0) + chance.randrange(1, 6)
        while process.is_alive() and max(losses(killed), default=-1) < target:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.03)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        assert max(losses(killed), default=0) < steps - 1 or kills == times
    process = start(pretrain, recipe, into(killed))
    process.join()
    assert process.exitcode == 0
    assert losses(killed) == losses(whole)
    assert same(killed, whole)


def test_a_damaged_checkpoint_is_passed_over(uninterrupted, tmp_path):
    pretrain(small(steps=6), into(tmp_path))
    assert steps_kept(tmp_path)[-2:] == [4, 6]
    torn = tmp_path / "checkpoints" / "step-00000006" / "training.pt"
    content = bytearray(torn.read_bytes())
    content[len(content) // 2] ^= 1
    torn.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000006 is damaged: training.pt has changed"):
        pretrain(small(steps=6), into(tmp_path))
    assert list(losses(tmp_path)) == list(range(6))
    for path in (tmp_path / "checkpoints").glob("step-*"):
        (path / "model.safetensors").write_bytes(b"torn")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what an error says is not said before
        with pytest.raises(
            RuntimeError, match=r"cannot resume from any checkpoint in .*; the newest: .*step-00000006.* damaged"
        ):
            pretrain(small(), into(tmp_path))


def test_a_foreign_checkpoint_is_refused(tmp_path):
    pretrain(small(steps=2), into(tmp_path / "one"))
    other = small(model_options={**small().model_options, "decoder_depth": 1})
    checkpoint = tmp_path / "one" / "checkpoints" / "step-00000002"
    with pytest.raises(ValueError, match=r"belongs to another model: decoder_depth 2, here 1"):
        pretrain(other, into(tmp_path / "two", resume=str(checkpoint)))
    with pytest.raises(FileNotFoundError, match="is not a checkpoint of a run"):
        pretrain(other, into(tmp_path / "two", resume=str(tmp_path)))
    with pytest.raises(ValueError, match="holds checkpoints of a run"):
        pretrain(small(), into(tmp_path / "one", resume="never"))


@pytest.mark.parametrize("what", ["ours", "the writer's of PyTorch", "the writer's of safetensors"])
def test_a_full_disk_is_reported_and_costs_one_checkpoint(uninterrupted, tmp_path, monkeypatch, what):
    from safetensors import SafetensorError

    where, error = {
        "ours": ("training.pt", OSError(errno.ENOSPC, "No space left on device")),
        "the writer's of PyTorch": ("training.pt", RuntimeError("[enforce fail] No space left on device")),
        "the writer's of safetensors": ("model.safetensors", SafetensorError("I/O error: No space left on device")),
    }[what]

    def full(write):
        def written(*arguments, **options):
            for path in map(str, arguments):
                if "step-00000004" in path and path.endswith(where):
                    Path(path).write_bytes(b"half")
                    raise error
            return write(*arguments, **options)

        return written

    monkeypatch.setattr(torch, "save", full(torch.save))
    monkeypatch.setattr(run_state, "save_state", full(run_state.save_state))
    with pytest.warns(UserWarning, match=r"no checkpoint written at step 4: .*No space left on device"):
        pretrain(small(), into(tmp_path, keep_last=20))
    assert steps_kept(tmp_path) == [0, 2, 6, 8, 10, 12]
    assert same(tmp_path, uninterrupted[0])


def test_a_log_that_cannot_be_written_is_reported_and_stops_nothing(uninterrupted, tmp_path, monkeypatch):
    losses_of = Monitor.losses

    class Full(type(Path())):
        def open(self, *_, **__):
            with super().open("a") as log:
                log.write('{"step": 4, "lo')
            raise OSError(errno.ENOSPC, "No space left on device")

    def sometimes(monitor, losses):
        if losses.first == 4:
            monitor._log = Full(monitor._log)
        losses_of(monitor, losses)
        monitor._log = Path(monitor._log)

    monkeypatch.setattr(Monitor, "losses", sometimes)
    with pytest.warns(UserWarning, match="No space left on device"):
        pretrain(small(), into(tmp_path, log_every=2))
    # What waited is written when there is room, and nothing twice.
    assert [entry["step"] for entry in read_log(tmp_path / "log.jsonl") if "loss" in entry] == list(range(12))
    assert all(
        line.startswith("{") and line.endswith("}") for line in (tmp_path / "log.jsonl").read_text().splitlines()
    )
    assert same(tmp_path, uninterrupted[0])


def test_a_run_that_starts_from_another_ones_checkpoint_goes_on_with_its_own(uninterrupted, tmp_path):
    """A scheduler gives the same command again."""
    pretrain(small(), into(tmp_path / "one", keep_last=20))
    again = {"resume": str(tmp_path / "one" / "checkpoints" / "step-00000004")}
    pretrain(small(steps=12), into(tmp_path / "two", **again))
    assert list(losses(tmp_path / "two")) == list(range(4, 12))
    before = (tmp_path / "two" / "log.jsonl").read_text()
    pretrain(small(steps=12), into(tmp_path / "two", **again))
    assert (tmp_path / "two" / "log.jsonl").read_text().startswith(before)
    assert same(tmp_path / "two", uninterrupted[0])


def test_going_back_to_an_own_checkpoint_needs_the_later_ones_out_of_the_way(tmp_path):
    pretrain(small(steps=4), into(tmp_path))
    with pytest.raises(
        ValueError, match=r"is a checkpoint of this run, which continues from its newest one; remove the later ones"
    ):
        pretrain(small(), into(tmp_path, resume=str(tmp_path / "checkpoints" / "step-00000002")))


def test_a_loss_scale_that_is_not_in_a_checkpoint_starts_anew(tmp_path, monkeypatch):
    """That of a run in another precision, which goes on in float16."""
    pretrain(small(steps=2), into(tmp_path))
    loaded = []
    monkeypatch.setattr("lightning_fabric.plugins.precision.precision.Precision.load_state_dict", loaded.append)
    pretrain(small(steps=3), into(tmp_path))
    assert not loaded


def test_what_is_kept(tmp_path):
    options = into(tmp_path, keep_last=2, keep_every=4 / 84, probe_every=6 / 84)
    pretrain(small(), options)
    assert {0, 4, 8, 10, 12} <= set(steps_kept(tmp_path))
    there = Checkpoints(tmp_path / "checkpoints", 1, None).there()
    scores = {checkpoint.step: checkpoint.score for checkpoint in there}
    knn = {entry["step"]: entry["knn"] for entry in read_log(tmp_path / "log.jsonl") if "knn" in entry}
    assert set(knn) == {6, 12}
    assert scores[12] == knn[12]
    best = max(knn, key=knn.get)
    assert best in scores


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_first_tensor(tmp_path, monkeypatch):
    from crossmae.model.blocks import Mlp

    forward, train_step = Mlp.forward, Stepper.train_step
    now = [None, None]

    def noted(stepper, batches):
        now[:] = [stepper.step, stepper.model.encoder.blocks[1].mlp]
        return train_step(stepper, batches)

    def overflowing(mlp, x, norm, *others):
        result = forward(mlp, x, norm, *others)
        return result * torch.inf if now[0] == 7 and mlp is now[1] else result

    monkeypatch.setattr(Stepper, "train_step", noted)
    monkeypatch.setattr(Mlp, "forward", overflowing)
    with pytest.raises(RuntimeError) as failure:
        pretrain(small(), into(tmp_path))
    message = str(failure.value)
    assert "the loss of step 7 is not finite" in message
    assert "first tensor that is not finite is the output of model.encoder.blocks.1.mlp, in step 7" in message
    assert "last good checkpoint is" in message
    assert "step-00000006" in message
    assert max(steps_kept(tmp_path)) == 6
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_a_gradient_that_is_not_finite_is_found_in_the_step_that_made_it(tmp_path, monkeypatch):
    backward = loop.Fabric.backward
    steps = []  # one entry a step; nine are taken before the loss is read, and taken again then

    def poisoned(fabric, loss, **arguments):
        steps.append(None)
        scale = torch.inf if len(steps) in (6, 9 + 6) else 1.0
        backward(fabric, loss * scale, **arguments)

    monkeypatch.setattr(loop.Fabric, "backward", poisoned)
    with pytest.raises(RuntimeError, match=r"not finite is the gradient of the output of model.*, in step 5"):
        pretrain(small(), into(tmp_path, save_every=1000))


def test_a_compiled_model_is_diagnosed_module_by_module(tmp_path):
    """Compiled code would not run hooks that come later."""
    torch.compiler.reset()
    recipe = small(execution="compile", model_options={**small().model_options, "decoder_depth": 1})
    stepper = stepper_of(recipe, into(tmp_path))
    config = stepper.model.config

    def batches():
        while True:
            images = torch.rand(4, config.channels, *config.image_size)
            yield Batch(images, torch.rand(4, config.patches), torch.zeros(4), ())

    stepper.loss = stepper.fabric.setup_module(torch.compile(stepper.module, backend="aot_eager"))
    stepper.train_step(batches())
    with torch.no_grad():
        stepper.model.encoder.blocks[1].mlp.fc1.bias[:] = 1e30
        stepper.model.encoder.blocks[1].mlp.fc2.weight[:] = 1e30
    assert "the output of model.encoder.blocks.1.mlp" in find_nonfinite(stepper, batches(), 1)


def test_a_graphs_gradients_outlive_it(tmp_path, monkeypatch):
    """Replaying a CUDA graph writes to the memory of the gradients that the last replay left."""
    stale = []
    backward = loop.Fabric.backward

    def noted(fabric, loss, **arguments):
        new = [p for p in noted.stepper.module.parameters() if p.grad is None]
        backward(fabric, loss, **arguments)
        stale[:] = [p.grad for p in new if p.grad is not None]  # autograd gives these out as they are

    def overwritten():
        for gradient in stale:
            gradient.fill_(torch.nan)

    train_step = Stepper.train_step

    def taken(stepper, batches):
        noted.stepper = stepper
        stale.clear()
        return train_step(stepper, batches)

    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    for execution in ("eager", "graphs"):
        if execution == "graphs":
            monkeypatch.setattr(loop.Fabric, "backward", noted)
            monkeypatch.setattr(Stepper, "train_step", taken)
            monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", overwritten)
        pretrain(small(steps=2, micro_batch=4, execution=execution), into(tmp_path / execution))
    assert same(tmp_path / "eager", tmp_path / "graphs")


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    for name, micro_batch in (("whole", None), ("parts", 4)):
        recipe = small(steps=4, precision="float64", micro_batch=micro_batch)
        pretrain(recipe, into(tmp_path / name))
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert all(abs(whole[step] - parts[step]) < 1e-12 for step in whole)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-10) for name in a)


def test_ratios_may_change_on_the_way(tmp_path):
    shallow = {**small().model_options, "encoder_depth": 1, "decoder_depth": 1}
    ratios = {"prediction_ratio": (0.25, 0.5), "mask_ratio": (0.5, 0.75)}
    recipe = small(steps=4, batch_size=1347 // 2, model_options=shallow, **ratios)
    model = pretrain(recipe, into(tmp_path))
    assert len(losses(tmp_path)) == 4
    assert model.config.patches == 64


@pytest.mark.parametrize("settings", [{"clip_norm": 0.1}, {"precision": "bfloat16"}])
def test_other_ways_to_train(uninterrupted, tmp_path, settings):
    pretrain(small(steps=6, **settings), into(tmp_path))
    theirs = losses(uninterrupted[0])
    differences = [abs(loss - theirs[step]) for step, loss in losses(tmp_path).items()]
    assert 0 < max(differences) < 0.2


@pytest.mark.parametrize("execution", ["compile", pytest.param("graphs", marks=pytest.mark.slow)])
def test_a_compiled_run_is_the_same_run(tmp_path, monkeypatch, execution):
    compiled = torch.compile
    modes = []

    def quickly(model, mode=None, **repeated):
        modes.extend([mode] * (mode is not None))  # Fabric compiles once more, behind its wrapper
        return compiled(model, **{"backend": "aot_eager", **repeated})

    monkeypatch.setattr(torch, "compile", quickly)
    shallow = {**small().model_options, "encoder_depth": 1, "decoder_depth": 1}
    for steps in (3, 6):  # with a resumption on the way
        recipe = small(steps=steps, warmup=0.0, learning_rate=1e-9, model_options=shallow)
        pretrain(replace(recipe, execution=execution), into(tmp_path / "compiled"))
        pretrain(recipe, into(tmp_path / "eager"))
    assert modes == [{"compile": "default", "graphs": "reduce-overhead"}[execution]] * 2
    theirs = losses(tmp_path / "eager")
    assert losses(tmp_path / "compiled") == pytest.approx(theirs, rel=1e-5)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "eager").keys()


def test_a_messy_folder_trains(tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    noise = torch.randint(0, 256, (40, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels.numpy()).save(folder / f"{number:02}.jpg")
    (folder / "07.jpg").write_bytes((folder / "07.jpg").read_bytes()[:200])
    (folder / "21.jpg").write_bytes(b"")
    recipe = small(
        steps=10,
        batch_size=8,
        model_options={"encoder_depth": 1, "decoder_depth": 1},
        data=DataConfig(source=str(folder), workers=2),
    )
    pretrain(recipe, into(tmp_path / "run"))
    assert len(losses(tmp_path / "run")) == 10
    logged = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert len(logged) == 2
    assert "07.jpg" in "".join(logged)
    assert "21.jpg" in "".join(logged)
    with pytest.raises(ValueError, match=r"(07|21)\.jpg"):
        pretrain(recipe, into(tmp_path / "strict", strict=True))


def test_no_permission_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="no permission to write into the folder"):
        pretrain(small(), into(tmp_path))
    assert not list(tmp_path.iterdir())


def test_no_folder_to_write_to_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        pretrain(small(), into(tmp_path / "file" / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pause_that_fails_is_no_time_of_training(uninterrupted, tmp_path, monkeypatch):
    def failing(*_):
        time.sleep(0.5)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Evaluation, "draw", failing)
    begun = time.perf_counter()
    with pytest.warns(UserWarning, match=r"no pictures drawn at step .*No space left on device"):
        pretrain(small(), into(tmp_path, pictures_every=2 / 84))
    took = time.perf_counter() - begun
    trained = max(entry["seconds"] for entry in read_log(tmp_path / "log.jsonl") if "seconds" in entry)
    assert trained < took - 5 * 0.5  # of six pauses, the last comes after the last reading
    assert same(tmp_path, uninterrupted[0])
