"""The comparison of residuals: its recipes, its table, and all of it in small."""

import json

from studies import residuals_record

from benchmarks.residuals import main, residual_recipe
from benchmarks.studies import RESIDUALS
from crossmae.training.study import TASKS


def test_recipes_differ_in_the_residual_alone():
    ours, others = (residual_recipe(residual, "digits", 1, 10) for residual in ("autocast", "float32"))
    assert ours.precision == others.precision == "bfloat16"
    assert ours.config().residual == "autocast"
    ours.model_options["residual"] = "float32"
    assert ours == others


def test_the_table_has_means_spreads_and_differences_of_the_same_seed():
    text = RESIDUALS.table(residuals_record())
    assert "**digits**" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        ["residual in float32", "92.0 ± 2.0", "50.0 ± 0.0"],
        ["residual in autocast", "93.0 ± 2.0", "49.0 ± 0.0"],
        ["autocast less float32, seed by seed", "1.0 ± 0.0", "-1.0 ± 0.0"],
    ]


def test_the_whole_comparison_in_small(tmp_path, monkeypatch, capsys):
    for name, smaller in (("BATCH", 8), ("ALL_IMAGES", 60)):
        monkeypatch.setattr(f"crossmae.training.study.{name}", smaller)
    monkeypatch.delitem(TASKS, "photographs")
    options = ["--out", str(tmp_path), "--seeds", "1", "--steps", "2"]
    main(options)
    monkeypatch.setattr("crossmae.training.study.pretrain", None)  # nothing is run again
    main(options)
    assert "| residual in autocast " in capsys.readouterr().out
    record = json.loads((tmp_path / "residuals.json").read_text())
    assert [run["residual"] for run in record["runs"]] == ["float32", "autocast"]
    assert (tmp_path / "residuals.png").read_bytes().startswith(b"\x89PNG")
    for residual in ("float32", "autocast"):
        recipe = json.loads((tmp_path / "runs" / f"digits-0-{residual}" / "recipe.json").read_text())
        assert recipe["model_options"]["residual"] == residual
