"""The comparison in small: CrossMAE against MAE on real pictures, with the same encoder and the same images."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from crossmae.checkpoint import load
from crossmae.figures import draw_learning, draw_reconstructions
from crossmae.files import make_folder, replacing
from crossmae.flops import decoder_macs
from crossmae.masking import Masking, random_masking
from crossmae.measure import interleaved_medians
from crossmae.model import MaskedAutoencoder, create_model
from crossmae.reconstruction import denormalized, reconstruct, visible_part
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.evaluation import baseline_accuracies
from crossmae.training.plan import make_plan
from crossmae.training.precision import settled
from crossmae.training.recipe import Precision
from crossmae.training.run import open_dataset
from crossmae.training.study import BATCH, MASK_RATIO, Variant, evaluations, pretrained, recipe_of

VARIANTS = {"MAE": Variant("MAE", family="mae", prediction_ratio=MASK_RATIO), "CrossMAE": Variant("CrossMAE")}
EVALUATIONS = 4  # of the features, while training
PICTURES = 6
BASE_BATCH = 8  # of ViT-B, for the decoders' times


def run(out: str, steps: int) -> None:
    """A study of two decoders on one task with one seed; leaves two pictures and ``results.md`` in the folder ``out``.

    The runs themselves are left in folders beside them, anew each time.
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
    print("Comparing with raw pixels and an untrained encoder, measuring the decoders ...")
    levels = baseline_accuracies(images, models["CrossMAE"].config, recipe.seed)
    decode = _decode_cost(models, BATCH, precision)
    decode_base = _decode_cost(
        {"MAE": create_model("mae_vit_base_patch16"), "CrossMAE": create_model("crossmae_vit_base_patch16")},
        BASE_BATCH,
        precision,
    )

    draw_learning(
        {name: [entry["loss"] for entry in log if "loss" in entry] for name, log in logs.items()},
        {name: {entry["step"]: entry["knn"] for entry in evaluations(log)} for name, log in logs.items()},
        {name: accuracies["knn"] for name, accuracies in levels.items()},
        folder / "learning.png",
    )
    draw_reconstructions(_reconstructions(models, images), folder / "reconstructions.png")
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
    print(f"Pictures and table: {folder}/reconstructions.png, {folder}/learning.png, {folder}/results.md")


def _decode_cost(
    models: dict[str, MaskedAutoencoder], batch: int, precision: Precision
) -> dict[str, tuple[int, float]]:
    """Per model: MACs per image of the decoder's forward pass, and seconds for a batch forward and backward."""
    steps: dict[str, Callable[[], None]] = {}
    macs: dict[str, int] = {}
    for name, model in models.items():
        config = model.config
        masking = random_masking(batch, config.patches, MASK_RATIO, VARIANTS[name].prediction_ratio)
        with torch.no_grad():
            maps = model.encoder(torch.randn(batch, config.channels, *config.image_size), masking.visible_ids)
        steps[name] = functools.partial(_decode_step, model, [m.requires_grad_() for m in maps], masking, precision)
        macs[name] = decoder_macs(config, VARIANTS[name].prediction_ratio, MASK_RATIO)
    seconds = interleaved_medians(steps, rounds=3)
    return {name: (macs[name], seconds[name]) for name in models}


def _decode_step(model: MaskedAutoencoder, maps: list[Tensor], masking: Masking, precision: Precision) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = model.decoder(maps, masking).float().square().mean()
    loss.backward()


@torch.no_grad()
def _reconstructions(models: dict[str, MaskedAutoencoder], images: ImageDataset) -> dict[str, Tensor]:
    """Columns of pictures: the images, what the encoder saw, and what each model makes of it.

    All masked patches are decoded, also by the model that was trained on a third of them: queries are independent.
    """
    config, shown = models["MAE"].config, images.evaluation or images.images
    normalized = models["MAE"].normalized(torch.stack([shown[i].image for i in range(PICTURES)]))
    masking = random_masking(
        PICTURES, config.patches, MASK_RATIO, MASK_RATIO, generator=torch.Generator().manual_seed(0)
    )
    columns = {"original": normalized, "masked (75 %)": visible_part(normalized, masking, config)}
    for name, model in models.items():
        prediction = model.eval()(normalized, masking=masking).prediction
        columns[name] = reconstruct(normalized, prediction, masking, model.config)
    return {name: denormalized(pictures, config) for name, pictures in columns.items()}


def _report(
    quality: list[tuple[str, float, float, float | None]],
    costs: list[tuple[str, dict[str, tuple[int, float]]]],
    steps: int,
    precision: Precision,
) -> str:
    """The closing tables, as Markdown."""
    rows = [(name, f"{knn:.1%}", f"{linear:.1%}", s and f"{s:.0f} s") for name, knn, linear, s in quality]
    text = f"Frozen features on held-out digits, after {steps} steps of 128 images:\n\n"
    text += tabulate(rows, headers=["features", "kNN", "linear probe", "pretraining"], tablefmt="github")
    cost_rows = []
    for title, cost in costs:
        for name, (macs, seconds) in cost.items():
            mae_macs, mae_seconds = cost["MAE"]
            ratios = (f"{mae_macs / macs:.2f}", f"{mae_seconds / seconds:.2f}")
            cost_rows.append((title, name, f"{macs / 1e6:,.1f}", f"{seconds * 1e3:,.0f}", *ratios))
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
