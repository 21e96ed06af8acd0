"""Going on in the folder of a run, and by how a command ends that it can be gone on with."""

import json
import os
import signal
from dataclasses import replace

import pytest
from PIL import Image
from pretraining import into, losses, small

from crossmae.commands.cli import main
from crossmae.training.data.bundled import bundled_set
from crossmae.training.recipe import changes
from crossmae.training.run import pretrain
from crossmae.training.step import Stepper

OTHER = {
    "seed 0, here 1": {"seed": 1},
    "mask_ratio 0.75, here 0.5": {"mask_ratio": 0.5},
    'masking "random", here "block"': {"masking": "block"},
    "batch_size 16, here 8": {"batch_size": 8},
    "learning_rate 0.001, here 0.002": {"learning_rate": 2e-3},
    'precision "float32", here "bfloat16"': {"precision": "bfloat16"},
    "data.flip false, here true": {"data": replace(small().data, flip=True)},
    r"data.crop_scale null, here \[0.5, 1.0\]": {"data": replace(small().data, crop_scale=(0.5, 1.0))},
    r"data.mean \[.*\], here \[0.5\]; data.std": {"data": replace(small().data, mean=(0.5,), std=(0.5,))},
    'data.source "digits", here ".*scans"': {"data": replace(small().data, source="scans")},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    pretrain(small(steps=2), into(folder))
    return folder


@pytest.mark.parametrize("what", OTHER)
def test_a_run_goes_on_as_the_same_run_alone(begun, tmp_path, what):
    settings = OTHER[what]
    if "source" in what:
        (tmp_path / "scans").mkdir()
        for number, image in enumerate(bundled_set("digits")[0].images[:20, 0].numpy()):
            Image.fromarray(image).save(tmp_path / "scans" / f"{number:02}.png")
        settings = {"data": replace(small().data, source=str(tmp_path / "scans"))}
    written = (begun / "recipe.json").read_text()
    checkpoint = begun / "checkpoints" / "step-00000002"
    with pytest.raises(ValueError, match=f"holds a run with other settings: {what}.*resume={checkpoint}"):
        pretrain(small(steps=3, **settings), into(begun))
    assert (begun / "recipe.json").read_text() == written
    assert list(losses(begun)) == [0, 1]


def test_other_settings_may_start_from_a_checkpoint_in_another_folder(begun, tmp_path, capsys):
    checkpoint = begun / "checkpoints" / "step-00000002"
    pretrain(small(steps=3, seed=1), into(tmp_path, resume=str(checkpoint)))
    assert f"Resuming from {checkpoint}; seed 0, here 1; steps 2, here 3." in capsys.readouterr().out
    assert json.loads((tmp_path / "recipe.json").read_text())["seed"] == 1
    assert list(losses(tmp_path)) == [2]


def test_a_longer_run_that_runs_otherwise_is_the_same_and_says_so(tmp_path, capsys):
    pretrain(small(steps=2), into(tmp_path))
    pretrain(small(steps=4, micro_batch=8, data=replace(small().data, workers=1)), into(tmp_path))
    assert "; steps 2, here 4; micro_batch null, here 8; data.workers 0, here 1." in capsys.readouterr().out
    assert list(losses(tmp_path)) == list(range(4))
    pretrain(small(steps=4, micro_batch=8, data=replace(small().data, workers=1)), into(tmp_path))
    assert "step-00000004.\n" in capsys.readouterr().out


def test_a_recipe_that_was_written_is_read_as_far_as_it_tells(tmp_path):
    written = tmp_path / "recipe.json"
    assert changes(small(), written) == ([], [])
    settings = json.loads(small(steps=3, seed=4).to_json())
    del settings["batch_size"]
    written.write_text(json.dumps(settings))
    assert changes(small(), written) == (["seed 4, here 0"], ["steps 3, here 12"])
    del settings["masking"]  # of a time when all masks were random
    written.write_text(json.dumps(settings))
    assert changes(small(seed=4, masking="grid"), written)[0] == ['masking "random", here "grid"']
    written.write_text("[")
    with pytest.raises(ValueError, match=r"recipe.json is not a recipe"):
        changes(small(), written)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_was_stopped_says_so_by_its_exit_code(tmp_path, monkeypatch, capsys, number, code):
    train_step = Stepper.train_step

    def signalled(stepper, batches):
        if stepper.step in stops:
            os.kill(os.getpid(), number)
        return train_step(stepper, batches)

    monkeypatch.setattr(Stepper, "train_step", signalled)
    (tmp_path / "recipe.json").write_text(small(steps=4).to_json())
    words = ["pretrain", "--recipe", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run")]
    words += ["--probe_every", "1000", "--pictures_every", "1000", "--probe_images", "60"]
    stops = {1}
    assert main(words) == code
    assert "Stopped after step 2, as requested" in capsys.readouterr().out
    stops = {3}  # the last, so that it is done
    assert main(words) == 0
    assert list(losses(tmp_path / "run")) == list(range(4))


def test_a_run_with_stochastic_depth_goes_on_bit_for_bit(tmp_path):
    """A loader that starts draws a number, which must not count among those that decide what is skipped."""
    options = {**small().model_options, "drop_path": 0.5}
    for steps, folder in ((4, "whole"), (2, "parts"), (4, "parts")):
        pretrain(small(steps=steps, learning_rate=1e-30, model_options=options), into(tmp_path / folder))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_settings_of_the_optimizer_are_the_recipes_after_a_resumption(begun, tmp_path, monkeypatch):
    settings = []
    train_step = Stepper.train_step

    def noted(stepper, batches):
        settings.append([(g["weight_decay"], g["betas"]) for g in stepper.optimizer.param_groups])
        return train_step(stepper, batches)

    monkeypatch.setattr(Stepper, "train_step", noted)
    checkpoint = str(begun / "checkpoints" / "step-00000002")
    pretrain(small(steps=3, weight_decay=0.3, betas=(0.8, 0.99)), into(tmp_path, resume=checkpoint))
    assert settings == [[(0.3, (0.8, 0.99)), (0.0, (0.8, 0.99))]]
