"""Fine-tuning runs: what they leave, how they go on, what they refuse."""

import signal
import time
from dataclasses import replace

import pytest
import torch
from finetuning import into, tuned
from pretraining import losses, weights
from processes import run_as_torchrun_would, start
from safetensors.torch import load_file

import crossmae
from crossmae.commands.cli import main
from crossmae.training.finetuning.classifier import load_classifier
from crossmae.training.finetuning.run import finetune, prepare
from crossmae.training.monitor import read_log
from crossmae.training.step import Stepper

EMA = 0.7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run to its end, with averaged weights, and the weights after each step."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    train_step = Stepper.train_step

    def noted(stepper, batches):
        loss = train_step(stepper, batches)
        seen.append({name: p.detach().clone() for name, p in stepper.module.named_parameters()})
        return loss

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stepper, "train_step", noted)
        classifier = finetune(tuned(ema=EMA), into(folder))
    return folder, classifier, seen


def newest(folder):
    return max((folder / "checkpoints").iterdir())


def same(folder, other):
    names = ("model.safetensors", "head.safetensors", "averaged.safetensors")
    pairs = [(load_file(newest(folder) / name), load_file(newest(other) / name)) for name in names]
    return all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours) for ours, theirs in pairs
    )


def test_what_a_run_leaves(whole):
    folder, classifier, seen = whole
    assert list(losses(folder)) == list(range(12))
    (found,) = [entry for entry in read_log(folder / "log.jsonl") if "top1" in entry]
    assert 0 <= found["top1"] <= found["top5"] <= 1
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert pictures == ["confusion-00000012.png", "curves-00000012.png"]
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    encoder = crossmae.load(folder / "model.safetensors")
    assert torch.equal(encoder.eval().encode(images), classifier.eval().model.encode(images))

    average = {name: value.clone() for name, value in seen[0].items()}
    for after in seen[1:]:
        for name, value in after.items():
            average[name].lerp_(value, 1 - EMA)
    loaded = load_classifier(newest(folder))
    for name, p in loaded.named_parameters():
        torch.testing.assert_close(p, average[name], msg=name)
    assert len(loaded.classes) == 19
    assert "astronaut" in loaded.classes


def test_killed_on_the_way_it_is_the_same_run(whole, tmp_path):
    """Order, crops, RandAugment, erasing, mixup, drop path, averages: all of it."""
    process = start(finetune, tuned(ema=EMA), into(tmp_path))
    while process.is_alive() and max(losses(tmp_path), default=-1) < 5:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert max(losses(tmp_path)) < 11
    finetune(tuned(ema=EMA, data=replace(tuned().data, workers=1)), into(tmp_path))
    assert losses(tmp_path) == losses(whole[0])
    assert same(tmp_path, whole[0])


def test_accuracy_is_that_of_the_classifier_on_all_held_out_images(tmp_path):
    classifier = finetune(tuned(steps=2), into(tmp_path))
    (found,) = [entry for entry in read_log(tmp_path / "log.jsonl") if "top1" in entry]
    run = prepare(tuned(steps=2), into(tmp_path))
    held_out = run._task.images.evaluation
    images, labels = (
        torch.stack([torch.as_tensor(s) for s in parts])
        for parts in zip(
            *((sample.image, sample.label) for sample in map(held_out.__getitem__, range(len(held_out)))), strict=True
        )
    )
    with torch.no_grad():
        best = classifier.eval()(classifier.model.normalized(images)).topk(5).indices
    assert found["top1"] == (best[:, 0] == labels).double().mean()
    assert found["top5"] == (best == labels[:, None]).any(1).double().mean()


@pytest.mark.slow
def test_it_learns(tmp_path):
    plain = {"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "drop_path": 0.0, "layer_decay": 1.0}
    data = replace(tuned().data, randaugment=None, crop_scale=None, flip=False)
    finetune(tuned(steps=60, batch_size=32, learning_rate=1e-2, data=data, **plain), into(tmp_path, save_every=1000))
    (found,) = [entry for entry in read_log(tmp_path / "log.jsonl") if "top1" in entry]
    assert found["top1"] > 3 / 19


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_two_processes_compute_what_one_does(tmp_path, strategy):
    settings = {"steps": 3, "precision": "float64", "mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "drop_path": 0.0}
    assert run_as_torchrun_would(2, finetune, tuned(**settings), into(tmp_path / "two", strategy=strategy)) == [0, 0]
    finetune(tuned(**settings), into(tmp_path / "one"))
    ours, theirs = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert ours == pytest.approx(theirs, abs=1e-12)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=0, atol=1e-10)
    accuracies = [[e for e in read_log(tmp_path / n / "log.jsonl") if "top1" in e] for n in ("one", "two")]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            "small",
            ["22.0 M parameters", "0.65, from 1 at the head to 0.0037", "125,100 = 100 epochs", "0.002 at its peak"],
        ),
        ("large", ["304.1 M parameters", "0.75, from 1 at the head to 0.00075", "62,550 = 50 epochs", "drop path 0.2"]),
    ],
)
def test_the_papers_recipes(size, words, capsys):
    arguments = ["finetune", "--recipe", f"finetune_{size}", "--checkpoint", "scratch", "--micro-batch", "8"]
    assert main([*arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in (*words, "mixup 0.8, cutmix 1, erasing 0.25, label smoothing 0.1", "rand-m9-mstd0.5-inc1", "1,024 = 1"):
        assert word in text
    assert "after 6,255 steps" in text  # 5 epochs of 1,251


def test_what_cannot_be_is_refused_before_work(tmp_path):
    folder = tmp_path / "run"
    refused = {
        "micro-batches must be even": {"batch_size": 5},
        "precision auto measures pretraining steps only": {"precision": "auto"},
        r"layer_decay must lie in \(0, 1\], got 2": {"layer_decay": 2.0},
        "data.randaugment needs 8-bit RGB images, these are uint8 with 1 channel": {
            "data": replace(tuned().data, source="digits"),
            "model_options": {**tuned().model_options, "channels": 1},
        },
    }
    for message, settings in refused.items():
        with pytest.raises(ValueError, match=message):
            prepare(tuned(**settings), into(folder))
    with pytest.raises(ValueError, match="ema keeps a whole copy"):
        prepare(tuned(ema=0.9), into(folder, strategy="fsdp"))
    assert not folder.exists()


def test_an_encoder_keeps_the_pixel_statistics_that_it_was_trained_with(tmp_path):
    statistics = {"pixel_mean": (0.4, 0.5, 0.6), "pixel_std": (0.2, 0.3, 0.4)}
    model = crossmae.create_model("mae_vit_tiny_patch4", encoder_depth=1, encoder_width=24, **statistics)
    crossmae.save(model, tmp_path / "m.safetensors")
    settings = {"checkpoint": str(tmp_path / "m.safetensors"), "model": None, "model_options": {}}
    run = prepare(tuned(**settings), into(tmp_path / "run"))
    assert run._plan.config.pixel_mean == (0.4, 0.5, 0.6)
    assert run._plan.recipe.data.std == (0.2, 0.3, 0.4)
    other = replace(tuned().data, mean=(0.1,) * 3, std=(1.0,) * 3)
    with pytest.raises(ValueError, match=r"data.mean is \(0.1, 0.1, 0.1\), but the encoder was trained with \(0.4,"):
        prepare(tuned(**settings, data=other), into(tmp_path / "run"))


def test_other_settings_are_another_run(whole):
    folder, *_ = whole
    with pytest.raises(
        ValueError, match=r"run with other settings: .*layer_decay 0.65, here 0.75.*mixup 0.8, here 0.5"
    ):
        finetune(tuned(ema=EMA, mixup=0.5, layer_decay=0.75), into(folder))


def test_a_held_out_image_that_cannot_be_read_does_not_count(tmp_path):
    from pictures import encoded, random_pixels

    for part, count in (("train", 8), ("val", 6)):
        for number in range(count):
            file = tmp_path / "images" / part / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(random_pixels(number, 40, 40, 3), "PNG"))
    (tmp_path / "images" / "val" / "a" / "2.png").write_bytes(b"torn")
    run = prepare(
        tuned(data=replace(tuned().data, source=str(tmp_path / "images")), steps=1, batch_size=4),
        into(tmp_path / "run"),
    )
    run.fit()
    assert int(run._task._found.confusion.sum()) == 5
    assert "2.png" in (tmp_path / "run" / "unreadable.txt").read_text()
