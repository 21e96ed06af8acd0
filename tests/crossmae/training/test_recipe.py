"""Recipes and the plans made of them."""

import json
import re
from dataclasses import replace

import pytest
from pretraining import small

from crossmae.commands.cli import main
from crossmae.masking import mask_counts
from crossmae.training.data.config import DataConfig
from crossmae.training.plan import make_plan
from crossmae.training.recipe import RECIPES, Recipe, RunOptions, read_recipes

IMAGENET = 1_281_167


def dry_run(capsys, *words):
    assert main(["pretrain", "--dry_run", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "gamma"),
    [
        *(("base", "25"), ("huge", "75")),
        *(
            pytest.param(size, gamma, marks=pytest.mark.slow)
            for size, gamma in (
                *(("small", "25"), ("small", "75"), ("base", "75")),
                *(("large", "25"), ("large", "75"), ("huge", "25")),
            )
        ),
    ],
)
def test_the_papers_recipes(capsys, size, gamma):
    text = dry_run(capsys, "--recipe", f"vit_{size}+gamma{gamma}+epochs400", "--micro_batch", "64")
    assert f"crossmae_vit_{size}_patch" in text
    # lr = gamma / p x 1.5e-4 x 4096 / 256; 312 steps of 4,096 in 1,281,167 images; 20 of 400 epochs warm up.
    peak = {"25": 8e-4, "75": 2.4e-3}[gamma]
    assert f"{peak:.3g} at its peak, after 6,240 steps" in text
    assert "124,800 = 400 epochs of 312" in text
    patches, predicted = (256, {"25": 64, "75": 192}) if size == "huge" else (196, {"25": 49, "75": 147})
    assert f"{patches} of {14 if size == 'huge' else 16} px: {patches // 4} seen, {predicted[gamma]} predicted" in text


def test_the_other_recipes(capsys):
    text = dry_run(capsys, "--recipe", "mae_base+epochs800", "--micro_batch", "64")
    assert "49 seen, 147 predicted" in text
    assert "0.0024 at its peak, after 12,480 steps" in text
    text = dry_run(capsys, "--recipe", "vit_base+px448", "--micro_batch", "16")
    assert "784 of 16 px: 196 seen, 196 predicted" in text
    text = dry_run(capsys, "--recipe", "vit_base+small_gpu")
    assert "4,096 = 1 device(s) x 16 micro-batch(es) x 256" in text
    kept = float(re.search(r"kept for the backward pass +([\d.]+) GiB", text).group(1))
    assert kept < 20
    text = dry_run(capsys, "--recipe", "cpu_trial", "--steps", "30")
    assert "1,347 of 32 x 32, 1 channels" in text
    assert "30 = 3 epochs of 10" in text


def test_what_makes_the_recipes_for_gpus_fast_and_what_it_costs(capsys):
    """Hidden layers of ViT-B: 12 blocks of 50 tokens x 3,072 and 12 of 49 x 2,048 numbers of two bytes."""
    recipe = ("--recipe", "vit_base", "--micro_batch", "256")
    kept = 256 * (12 * 50 * 3072 + 12 * 49 * 2048) * 2 / 2**30
    again = (12 * 50 * 3072 * 768 + 12 * 49 * 2048 * 512) / 1e9
    text = dry_run(capsys, *recipe)
    assert "bfloat16, auto (CUDA graphs on one GPU, eager elsewhere)" in text
    assert "16 bits under autocast" in text
    assert f"saved, {kept:.2f} GiB on each device" in text
    assert "float32 between blocks" in dry_run(capsys, *recipe, "--precision", "float32")
    assert f"saved, {2 * kept:.2f} GiB on each device" in dry_run(capsys, *recipe, "--precision", "float32")
    text = dry_run(capsys, "--recipe", "vit_base+small_gpu")
    assert f"recomputed by kernels, {again:.3g} GMAC per image; saving them takes {kept:.2f} GiB" in text
    every_patch = dry_run(capsys, "--recipe", "mae_base", "--micro_batch", "256")
    assert f"{256 * (12 * 50 * 3072 + 8 * 197 * 2048) * 2 / 2**30:.2f} GiB on each device" in every_patch


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "predicted", "macs"), [("pixio_huge", 192, 29), ("pixio_huge_crossmae", 64, 8.66)])
def test_pixio_s_recipes(capsys, recipe, predicted, macs):
    text = dry_run(capsys, "--recipe", recipe, "--micro_batch", "16")
    assert f"256 of 16 px: 64 seen, {predicted} predicted" in text
    assert f"{macs} GMAC per image" in text
    # lr = gamma / p x 2.5e-5 x 8192 / 256; 40 of 400 epochs of 1,605 steps warm up.
    assert f"{8e-4 * predicted / 192:.3g} at its peak, after 64,200 steps" in text


def test_every_recipe_is_one(capsys):
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    assert {"vit_base", "mae_base", "gamma25", "gamma75", "epochs400", "epochs800", "px448", "small_gpu"} <= names
    for name in names:
        assert read_recipes([name])
        assert (RECIPES / f"{name}.yaml").read_text().startswith("# ")


def test_settings_given_by_hand_win(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("batch_size: 64\nmodel_options: {decoder_depth: 3}\n")
    text = dry_run(capsys, "--recipe", f"cpu_trial+{tmp_path / 'mine.yaml'}", "--batch_size", "32")
    assert "32 = 1 device(s)" in text
    assert "MAE of the same depth 4.1" in text  # of three blocks, on one channel as before
    assert read_recipes(["cpu_trial", str(tmp_path / "mine.yaml")])["model_options"] == {
        "channels": 1,
        "normalize_targets": False,
        "decoder_depth": 3,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "vit_gigantic"], "there is no recipe or file 'vit_gigantic'; recipes are .*vit_base"),
        (["--batch_size", "-1"], "batch_size must be positive, got -1"),
        (["--mask_ratio", "1.5"], r"mask_ratio must lie in \(0, 1\), got 1.5"),
        (["--warmup", "2"], r"warmup must be a fraction of the run in \[0, 1\), got 2"),
        (["--log_every", "0"], "log_every must be positive, got 0"),
        (["--prediction_ratio", "0.9"], "prediction_ratio must lie in"),
        (["--masking", "grid", "--mask_ratio", "0.5"], r"hides 0.75 \(stride 2\), .*; got mask_ratio 0.5"),
        (
            ["--masking", "grid", "--mask_ratio", "[0.75, 0.8]"],
            r"must be constant with masking grid, got \(0.75, 0.8\)",
        ),
        (["--model", "vit_b"], "there is no model 'vit_b'"),
        (["--recipe", "cpu_trial", "--batch_size", "2000"], "at most the number of images 1347, got 2000"),
        (["--recipe", "cpu_trial", "--strategy", "fsdp", "--precision", "float16"], "float16 cannot be sharded"),
    ],
)
def test_wrong_settings_are_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    dry = [] if "fsdp" in words else ["--dry_run"]
    assert main(["pretrain", *dry, *words]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(rf"crossmae pretrain: .*{message}.*\n", error)
    assert not any(tmp_path.glob("*/checkpoints"))


def test_masks_have_the_shape_of_the_recipe(capsys):
    words = ["--recipe", "cpu_trial", "--steps", "30"]
    text = dry_run(capsys, *words, "--masking", "block", "--mask_ratio", "[0.5, 0.75]")
    assert re.search(r"masks +block\n", text)
    assert "32 seen, 16 predicted" in text
    text = dry_run(capsys, *words, "--masking", "grid", "--prediction_ratio", "[0.25, 0.75]")
    assert re.search(r"masks +grid\n", text)
    assert "16 seen, 16 predicted" in text


def test_choices_that_there_are_not_are_named():
    message = "masking must be one of random, .*, furthest, got 'blocks'; precision must be one of .*, got 'bf16'"
    with pytest.raises(ValueError, match=message):
        small(masking="blocks", precision="bf16")


@pytest.mark.parametrize("content", ["modle: vit", "data: {sorce: x}", "epochs: many"])
def test_wrong_keys_are_refused(capsys, tmp_path, content):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--dry_run", "--recipe", str(tmp_path / "mine.yaml")])
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["- a list", "{", ""])
def test_files_without_settings_are_refused(capsys, tmp_path, content):
    (tmp_path / "mine.yaml").write_text(content)
    assert main(["pretrain", "--dry_run", "--recipe", str(tmp_path / "mine.yaml")]) == 1
    assert "mine.yaml" in capsys.readouterr().err


def test_a_run_can_be_repeated_from_its_recipe(tmp_path, capsys):
    recipe = small(prediction_ratio=(0.25, 0.5), data=DataConfig(source="digits", mean=(0.3,), std=(0.2,)))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert json.loads(recipe.to_json())["prediction_ratio"] == [0.25, 0.5]
    text = dry_run(capsys, "--recipe", str(tmp_path / "recipe.json"))
    assert "prediction 0.25" in text


def test_learning_rate_and_ratios_over_a_run():
    plan = make_plan(small(steps=None, epochs=5, mask_ratio=(0.5, 0.9), prediction_ratio=(0.3, 0.1)), 160, 1)
    assert plan.steps == 50
    assert plan.ratios(0) == (0.5, 0.3)
    assert plan.ratios(9) == (0.5, 0.3)
    assert plan.ratios(20) == (0.7, 0.2)
    assert plan.ratios(49) == (0.9, 0.1)
    assert mask_counts(64, *plan.ratios(30)) == (64 - 51, 10)
    constant = make_plan(small(steps=None, epochs=5), 160, 1)
    assert {constant.ratios(step) for step in range(50)} == {(0.75, 0.25)}
    rates = [plan.learning_rate(step) for step in range(50)]
    assert max(rates) == plan.peak_learning_rate == 1e-3
    assert rates.index(max(rates)) == plan.warmup_steps - 1 == 1


@pytest.mark.parametrize(
    ("devices", "micro_batch", "expected"),
    [(1, None, (48, 1)), (1, 20, (16, 3)), (2, 10, (8, 3)), (4, 12, (12, 1)), (3, 5, (4, 4))],
)
def test_batches_are_cut_into_the_fewest_equal_parts(devices, micro_batch, expected):
    plan = make_plan(small(batch_size=48, micro_batch=micro_batch), 480, devices)
    assert (plan.micro_batch, plan.accumulation) == expected
    assert plan.micro_batch * plan.accumulation * devices == 48


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="multiple of the number of devices 5, got 48"):
        make_plan(small(batch_size=48), 480, 5)


def test_settings_are_checked_together():
    with pytest.raises(ValueError, match=r"recipe: epochs must be positive, got 0; weight_decay must not be negative"):
        replace(Recipe(), epochs=0, weight_decay=-1)
    with pytest.raises(ValueError, match=r"run: keep_last must be positive, got 0"):
        RunOptions(keep_last=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("epochs", float("inf")),
        ("learning_rate", float("nan")),
        ("weight_decay", float("nan")),
        ("betas", (1.0, 0.9)),
    ],
)
def test_numbers_that_cannot_be_run_are_refused(name, value):
    with pytest.raises(ValueError, match=f"recipe: {name} must"):
        Recipe(**{name: value})


def test_recipes_are_read_as_utf8_whatever_the_system_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "cp1252")
    monkeypatch.setattr("locale.getencoding", lambda: "cp1252", raising=False)
    for name, encoding in (("plain", "utf-8"), ("notepad", "utf-8-sig"), ("wide", "utf-16")):
        (tmp_path / f"{name}.yaml").write_text("data: {source: Wörter→}", encoding)
        assert read_recipes([str(tmp_path / f"{name}.yaml")]) == {"data": {"source": "Wörter→"}}
