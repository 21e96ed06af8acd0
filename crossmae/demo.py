"""The main job in small: CrossMAE against MAE on real pictures, with the same encoder and the same images."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from crossmae.figures import draw_learning, draw_reconstructions
from crossmae.files import replacing
from crossmae.flops import decoder_macs
from crossmae.masking import Masking, random_masking
from crossmae.measure import interleaved_medians
from crossmae.model import MaskedAutoencoder, create_model
from crossmae.reconstruction import reconstruct
from crossmae.training.data import LabelledImages, standardised
from crossmae.training.pretrain import Pretraining, pretrain
from crossmae.training.probe import evaluate, features, knn_accuracy

MASK_RATIO = 0.75
PREDICTION_RATIOS = {"CrossMAE": 0.25, "MAE": MASK_RATIO}
EVALUATIONS = 4  # of the features, while training
PICTURES = 6
BASE_BATCH = 8  # of ViT-B, for the decoders' times


@dataclass
class Run:
    """What one pretraining left behind."""

    model: MaskedAutoencoder
    losses: list[float] = field(default_factory=list)
    knn: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0


def run(out: str, steps: int) -> None:
    """Pretrain, evaluate, measure and draw; leaves two pictures and ``results.md`` in the folder ``out``."""
    if steps < EVALUATIONS:
        raise ValueError(f"steps must be at least {EVALUATIONS}, got {steps}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = standardised("digits")
    print(
        f"{len(train.labels)} digits to train on, {len(test.labels)} held out; {torch.get_num_threads()} CPU threads."
    )

    pixels = evaluate(train.images.flatten(1), test.images.flatten(1), train, test)
    untrained = _accuracies(_tiny("crossmae"), train, test)
    runs = {name: _pretrained(name, train, test, steps) for name in ("MAE", "CrossMAE")}
    trained = {name: _accuracies(run.model, train, test) for name, run in runs.items()}
    print("Measuring the decoders, tiny and ViT-B ...")
    decode = _decode_cost({name: run.model for name, run in runs.items()}, batch=128)
    decode_base = _decode_cost(
        {"MAE": create_model("mae_vit_base_patch16"), "CrossMAE": create_model("crossmae_vit_base_patch16")},
        batch=BASE_BATCH,
    )

    draw_learning(
        {name: run.losses for name, run in runs.items()},
        {name: run.knn for name, run in runs.items()},
        {"raw pixels": pixels[0], "untrained encoder": untrained[0]},
        folder / "learning.png",
    )
    draw_reconstructions(_reconstructions(runs, test.images[:PICTURES]), folder / "reconstructions.png")
    quality = [
        ("raw pixels", *pixels, None),
        ("untrained encoder", *untrained, None),
        *((f"{name} encoder", *trained[name], runs[name].seconds) for name in runs),
    ]
    report = _report(
        quality, [("tiny, batch 128", decode), (f"ViT-B/16, 224 px, batch {BASE_BATCH}", decode_base)], steps
    )
    print("\n" + report)
    with replacing(folder / "results.md") as beside:
        beside.write_text(report)
    print(f"Pictures and table: {folder}/reconstructions.png, {folder}/learning.png, {folder}/results.md")


def _tiny(family: str) -> MaskedAutoencoder:
    """The tiny model for greyscale images; both families start from the same encoder weights.

    It predicts plain pixels: much of a scanned digit is blank, and a blank patch, normalised, is rounding noise.
    """
    torch.manual_seed(0)
    return create_model(f"{family}_vit_tiny_patch4", channels=1, normalize_targets=False)


def _accuracies(model: MaskedAutoencoder, train: LabelledImages, test: LabelledImages) -> tuple[float, float]:
    return evaluate(features(model, train.images), features(model, test.images), train, test)


def _pretrained(name: str, train: LabelledImages, test: LabelledImages, steps: int) -> Run:
    result = Run(_tiny(name.lower()))
    plan = Pretraining(
        steps=steps,
        batch_size=128,
        learning_rate=2e-3,
        warmup_steps=max(1, steps // 10),
        mask_ratio=MASK_RATIO,
        prediction_ratio=PREDICTION_RATIOS[name],
    )
    with tqdm(total=steps, desc=f"pretraining {name}", unit="step", mininterval=1) as progress:
        begun = time.perf_counter()

        def after_step(step: int, loss: float) -> None:
            nonlocal begun
            result.losses.append(loss)
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            progress.update()
            if step % (steps // EVALUATIONS) == 0:
                result.seconds += time.perf_counter() - begun
                train_features, test_features = (
                    features(result.model, train.images),
                    features(result.model, test.images),
                )
                result.knn[step] = knn_accuracy(train_features, train.labels, test_features, test.labels)
                result.model.train()
                begun = time.perf_counter()

        pretrain(result.model, train.images, plan, after_step)
        result.seconds += time.perf_counter() - begun
    return result


def _decode_cost(models: dict[str, MaskedAutoencoder], batch: int) -> dict[str, tuple[int, float]]:
    """Per model: MACs per image of the decoder's forward pass, and seconds for a batch forward and backward."""
    steps: dict[str, Callable[[], None]] = {}
    macs: dict[str, int] = {}
    for name, model in models.items():
        config = model.config
        masking = random_masking(batch, config.patches, MASK_RATIO, PREDICTION_RATIOS[name])
        with torch.no_grad():
            maps = model.encoder(torch.randn(batch, config.channels, *config.image_size), masking.visible_ids)
        steps[name] = functools.partial(_decode_step, model, [m.requires_grad_() for m in maps], masking)
        macs[name] = decoder_macs(config, PREDICTION_RATIOS[name], MASK_RATIO)
    seconds = interleaved_medians(steps, rounds=3)
    return {name: (macs[name], seconds[name]) for name in models}


def _decode_step(model: MaskedAutoencoder, maps: list[Tensor], masking: Masking) -> None:
    model.decoder(maps, masking).square().mean().backward()


@torch.no_grad()
def _reconstructions(runs: dict[str, Run], images: Tensor) -> dict[str, Tensor]:
    """Columns of pictures: the images, what the encoder saw, and what each model makes of it.

    All masked patches are decoded, also by the model that was trained on a third of them: queries are independent.
    """
    config = runs["MAE"].model.config
    masking = random_masking(
        len(images), config.patches, MASK_RATIO, MASK_RATIO, generator=torch.Generator().manual_seed(0)
    )
    columns = {"original": images, "masked (75 %)": _masked(images, masking, runs["MAE"].model)}
    for name, run in runs.items():
        prediction = run.model.eval()(images, masking=masking).prediction
        columns[name] = reconstruct(images, prediction, masking, run.model.config)
    return columns


def _masked(images: Tensor, masking: Masking, model: MaskedAutoencoder) -> Tensor:
    """The images with NaN where nothing is visible."""
    nothing = images.new_full((*masking.predicted_ids.shape, model.config.patch_values), float("nan"))
    return reconstruct(images, nothing, masking, model.config)


def _report(
    quality: list[tuple[str, float, float, float | None]],
    costs: list[tuple[str, dict[str, tuple[int, float]]]],
    steps: int,
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
    text += f"\n\nDecoder alone, prediction ratio {PREDICTION_RATIOS['CrossMAE']} (MAE decodes everything):\n\n"
    headers = ["size", "decoder", "MMAC per image", "forward + backward, ms", "MAE / it, MACs", "MAE / it, time"]
    return text + tabulate(cost_rows, headers=headers, tablefmt="github", disable_numparse=True) + "\n"
