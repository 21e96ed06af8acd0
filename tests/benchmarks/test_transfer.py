"""The study of fine-tuning: its table, its picture, and all of it in small."""

import json

from studies import transfer_record

from benchmarks.studies import TUNING
from benchmarks.transfer import STARTS, main, tuning_recipe
from crossmae.training.data import bundled
from crossmae.training.study import TASKS


def test_the_table_has_means_and_spreads_at_the_end():
    text = TUNING.table(transfer_record())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| from")]
    assert rows == [[f"from {start}", "91.0 ± 1.4", "100.0 ± 0.0"] for start in STARTS]
    assert "200 steps of fine-tuning after 600 of pretraining" in text


def test_the_picture(tmp_path):
    TUNING.draw(transfer_record(), tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").read_bytes().startswith(b"\x89PNG")


def test_starts_differ_in_weights_and_layer_decay_alone():
    recipes = [tuning_recipe(start, "digits", 0, "scratch", 100, 32).__dict__ for start in STARTS]
    different = {name for name in recipes[0] if len({str(recipe[name]) for recipe in recipes}) > 1}
    assert different == {"layer_decay", "model_options"}


def test_the_whole_study_in_small(tmp_path, monkeypatch, capsys):
    few = tuple(
        bundled.ImagesInMemory(part.images[:count], part.labels[:count], part.classes)
        for part, count in zip(bundled._digits(), (80, 40), strict=True)
    )
    monkeypatch.setattr(bundled, "_digits", lambda: few)
    monkeypatch.delitem(TASKS, "photographs")
    monkeypatch.setattr("benchmarks.transfer.EVALUATIONS", 2)
    words = ["--out", str(tmp_path), "--seeds", "1", "--steps", "1", "--tuning-steps", "2", "--batch", "8"]
    main(words)
    assert "| from CrossMAE" in capsys.readouterr().out
    runs = json.loads((tmp_path / "transfer.json").read_text())["runs"]
    assert [run["start"] for run in runs] == list(STARTS)
    assert [[entry["step"] for entry in run["accuracies"]] for run in runs] == [[1, 2]] * 3
    for name in ("finetune", "pretrained"):
        monkeypatch.setattr(f"benchmarks.transfer.{name}", lambda *_: None)  # nothing is run again
    main(words)
    assert json.loads((tmp_path / "transfer.json").read_text())["runs"] == runs
