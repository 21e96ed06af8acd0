import re

import torch

from crossmae.commands import tune
from crossmae.commands.cli import main
from crossmae.training.recipe import read_recipes
from crossmae_kernels.runtime import tuning
from crossmae_kernels.runtime.dispatch import default_implementation

SMALL = {"image_size": 8, "encoder_depth": 1, "decoder_depth": 1, "feature_maps": (0, 1)}
FORMS = {"linear_residual, forms", "mlp, forms", "mlp_backward, forms", "norm_linear, forms"}
TILES = {"cross_attention.short_forward, tiles", "patches.loss_forward, tiles"}


def test_a_step_of_training_and_one_of_validation_are_tuned(measured, interpreter_asked_for, monkeypatch, tmp_path):
    # Each candidate takes a millisecond less than the one before, of which the first is the rule's.
    taken = iter(range(0, -10_000, -1))
    monkeypatch.setattr(tuning, "_milliseconds", lambda run: float(next(taken)))
    with default_implementation("triton"):
        tune.take_steps("crossmae_vit_tiny_patch4", 2, "float16", 0.5, SMALL, torch.device("cpu"))
    found = tuning.findings()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tune.table(found).splitlines()[2:]]
    assert len(rows) == len(found) == len({*tmp_path.iterdir()})
    assert {row[0] for row in rows} >= FORMS | TILES
    with_gradients = next(row for row in rows if row[0] == "mlp, forms" and "save" in row[1])
    assert re.fullmatch(r"384 x 96, float16, ieee, float32, save, .*rows < \d+", with_gradients[1])
    assert with_gradients[2:4] == ["single", "library"]
    names = [word.split()[0] for word in with_gradients[4].split("; ")]
    assert (names[0], names[-1], "tiled" in names) == ("library", "single", True)
    assert any(row[0] == "mlp, forms" and "save" not in row[1] for row in rows)


def test_the_table_lists_whole_ops():
    images = torch.Size([3, 8, 8]), torch.float32, 16, (4, 4), torch.float16, None
    images_need, none_does = (
        tuning.Finding("forms", "gather_patches", (*images[:5], needs), 4, "kernels", "pytorch", times, "")
        for needs, times in (("gradients of 0", {"pytorch": 1.0, "kernels": 2.0}), (None, {"pytorch": 1.0}))
    )
    both, refused = tune.table([images_need, none_does]).splitlines()[2:]
    assert "3 x 8 x 8, float32, 16, (4, 4), float16, gradients of 0, rows < 4" in both
    assert "| pytorch 1.000; kernels 2.000 " in both
    assert "float16, rows < 4" in refused
    assert "kernels refused" in refused


def test_the_table_says_what_was_refused():
    key = (torch.Size([8, 4]), torch.float16, False)
    times = {"library": 2.0, "tiled": 3.0}, {"library": 2.0}
    found = [tuning.Finding("forms", "mlp", key, 64, "tiled", "library", taken, "") for taken in times]
    both, refused = tune.table(found).splitlines()[2:]
    row = ["mlp, forms", "8 x 4, float16, rows < 64", "tiled", "library"]
    assert [cell.strip() for cell in both.split("|")[1:-1]] == [*row, "library 2.000; tiled 3.000", "1.50"]
    assert [cell.strip() for cell in refused.split("|")[1:-1]] == [*row, "library 2.000; tiled refused", ""]


def test_without_a_gpu_there_is_nothing_to_time(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune"]) == 1
    assert (
        capsys.readouterr().err == "crossmae tune: tuning needs a CUDA device to time kernels on, and there is none\n"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["tune", "--batch", "0"]) == 1
    assert capsys.readouterr().err == "crossmae tune: batch must be positive, got 0\n"


def test_both_kinds_of_model_are_tuned_unless_options_decide():
    plain, recipes = tune.settings_with({"decoder_depth": 8})
    assert plain == {"residual": "float32", "hidden_layer": "recompute", "decoder_depth": 8}
    assert recipes == {"residual": "autocast", "hidden_layer": "save", "decoder_depth": 8}
    of_recipe = read_recipes(["vit_base"])["model_options"]
    assert {name: recipes[name] for name in ("residual", "hidden_layer")}.items() <= of_recipe.items()
    one = {"residual": "float32", "hidden_layer": "save"}
    assert tune.settings_with(one) == [one]
