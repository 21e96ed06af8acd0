"""``crossmae demo``: a small comparison of CrossMAE and MAE on real pictures, with the same encoder and images."""

import shutil
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from crossmae.benchmark.decode import Row, Setting, measure
from crossmae.checkpoint import load
from crossmae.figures import draw_learning, draw_reconstructions
from crossmae.files import make_folder, replacing
from crossmae.masking import Masking, random_masking
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config, named_config
from crossmae.reconstruction import denormalized, reconstruct, visible_part
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.evaluation import baseline_accuracies
from crossmae.training.plan import make_plan
from crossmae.training.precision import settled
from crossmae.training.recipe import Precision
from crossmae.training.run import open_dataset
from crossmae.training.study import BATCH, MASK_RATIO, Variant, evaluations, pretrained, recipe_of

VARIANTS = {"MAE": Variant("MAE", family="mae", prediction_ratio=MASK_RATIO), "CrossMAE": Variant("CrossMAE")}
EVALUATIONS = 4  # of the features, during training
PICTURES = 6
BASE_BATCH = 8  # of ViT-B, for timing the decoders


def run(out: str, steps: int) -> None:
    """A study of two decoders on one task with one seed; writes pictures and ``results.md`` to the folder ``out``.

    The runs themselves are in folders beside them, repeated each time.
    """
    if steps < EVALUATIONS:
        raise ValueError(f"steps must be at least {EVALUATIONS}, got {steps}")
    folder = Path(out)
    make_folder(folder)
    recipe, images = open_dataset(recipe_of(VARIANTS["CrossMAE"], "digits", 0, steps, "auto"))
    precision = settled(make_plan(recipe, len(images), devices=1))
    models, logs = {}, {}
    for name, variant in VARIANTS.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        recipe, images = open_dataset(recipe_of(variant, "digits", 0, steps, precision))
        every = steps // EVALUATIONS / (len(images) // recipe.batch_size)
        logs[name] = pretrained(recipe, folder / name, probe_every=every)
        models[name] = load(folder / name / "model.safetensors")
    print("Evaluating raw pixels and an untrained encoder, and timing the decoders ...")
    levels = baseline_accuracies(images, models["CrossMAE"].config, recipe.seed)
    decode = _decode_cost({name: model.config for name, model in models.items()}, BATCH, precision)
    base = {"MAE": named_config("mae_vit_base_patch16"), "CrossMAE": named_config("crossmae_vit_base_patch16")}
    decode_base = _decode_cost(base, BASE_BATCH, precision)

    draw_learning(
        {name: [entry["loss"] for entry in log if "loss" in entry] for name, log in logs.items()},
        {name: {entry["step"]: entry["knn"] for entry in evaluations(log)} for name, log in logs.items()},
        {name: accuracies["knn"] for name, accuracies in levels.items()},
        folder / "learning.png",
    )
    draw_reconstructions(_reconstructions(models, images), folder / "reconstructions.png")
    draw_reconstructions(_by_ratio(models["CrossMAE"], images), folder / "ratios.png")
    quality: list[tuple[str, float, float, float | None]] = [
        (name, accuracies["knn"], accuracies["linear"], None) for name, accuracies in levels.items()
    ]
    for name, log in logs.items():
        probe = evaluations(log)[-1]
        seconds = [entry["seconds"] for entry in log if "seconds" in entry][-1]
        quality.append((f"{name} encoder", probe["knn"], probe["linear"], seconds))
    costs = [(f"tiny, batch {BATCH}", decode), (f"ViT-B/16, 224 px, batch {BASE_BATCH}", decode_base)]
    report = _report(quality, costs, steps, precision)
    print("\n" + report)
    with replacing(folder / "results.md") as beside:
        beside.write_text(report, "utf-8")
    names = ("reconstructions.png", "ratios.png", "learning.png", "results.md")
    print(f"Pictures and table: {', '.join(str(folder / name) for name in names)}")


def _decode_cost(models: dict[str, Config], batch: int, precision: Precision) -> list[Row]:
    """MAE's and CrossMAE's decoders, measured like ``crossmae bench``."""
    ratio = VARIANTS["CrossMAE"].prediction_ratio
    dtype = getattr(torch, precision)
    return measure(Setting(models["CrossMAE"], models["MAE"], (ratio,), (), MASK_RATIO, batch, dtype, rounds=3))


@torch.no_grad()
def _reconstructions(models: dict[str, MaskedAutoencoder], images: ImageDataset) -> dict[str, Tensor]:
    """Columns of pictures: the images, their visible part, and each model's reconstruction.

    All masked patches are decoded, even by the model trained on a third of them, as queries are independent.
    """
    config, normalized = models["MAE"].config, _pictures(models["MAE"], images)
    masking = random_masking(
        PICTURES, config.patches, MASK_RATIO, MASK_RATIO, generator=torch.Generator().manual_seed(0)
    )
    columns = {"original": normalized, "masked (75 %)": visible_part(normalized, masking, config)}
    for name, model in models.items():
        prediction = model.eval()(normalized, masking=masking).prediction
        columns[name] = reconstruct(normalized, prediction, masking, model.config)
    return {name: denormalized(pictures, config) for name, pictures in columns.items()}


@torch.no_grad()
def _by_ratio(model: MaskedAutoencoder, images: ImageDataset) -> dict[str, Tensor]:
    """Columns of pictures: the visible part, and with it the predictions at each prediction ratio.

    Queries are independent, so a patch has the same prediction at every ratio that includes it.
    """
    config, normalized = model.config, _pictures(model, images)
    noise = torch.rand(PICTURES, config.patches, generator=torch.Generator().manual_seed(0))
    columns = {"original": normalized}
    for ratio in (0.25, 0.5, 0.75):
        masking = random_masking(PICTURES, config.patches, MASK_RATIO, ratio, noise=noise)
        columns.setdefault("masked (75 %)", visible_part(normalized, masking, config))
        whole = reconstruct(normalized, model.eval()(normalized, masking=masking).prediction, masking, config)
        known = torch.cat([masking.visible_ids, masking.predicted_ids], dim=1)
        shown = Masking(known, known[:, :0], config.patches)
        columns[f"predicts {ratio:g}"] = visible_part(whole, shown, config)
    return {name: denormalized(pictures, config) for name, pictures in columns.items()}


def _pictures(model: MaskedAutoencoder, images: ImageDataset) -> Tensor:
    """The first held-out images, normalised."""
    shown = images.evaluation or images.images
    return model.normalized(torch.stack([shown[i].image for i in range(PICTURES)]))


def _report(
    quality: list[tuple[str, float, float, float | None]],
    costs: list[tuple[str, list[Row]]],
    steps: int,
    precision: Precision,
) -> str:
    """The closing tables, as Markdown."""
    rows = [(name, f"{knn:.1%}", f"{linear:.1%}", s and f"{s:.0f} s") for name, knn, linear, s in quality]
    text = f"Frozen features on held-out digits, after {steps} steps of 128 images:\n\n"
    text += tabulate(rows, headers=["features", "kNN", "linear probe", "pretraining"], tablefmt="github")
    cost_rows = [
        (
            title,
            row.decoder,
            f"{row.macs / 1e6:,.1f}",
            row.both and f"{row.both * 1e3:,.0f}",
            f"{row.fewer:.2f}",
            row.both_speedup and f"{row.both_speedup:.2f}",
        )
        for title, rows in costs
        for row in rows
    ]
    predicts = VARIANTS["CrossMAE"].prediction_ratio
    text += f"\n\nDecoder alone in {precision}, prediction ratio {predicts} (MAE decodes everything):\n\n"
    headers = [
        "size",
        "decoder",
        "MMAC per image",
        "forward + backward, ms",
        "times fewer MACs than MAE",
        "speed-up over MAE",
    ]
    return text + tabulate(cost_rows, headers=headers, tablefmt="github", disable_numparse=True) + "\n"
