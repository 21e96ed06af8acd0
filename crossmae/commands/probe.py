"""``crossmae probe``: compare checkpoints' features by kNN, linear and attentive probes."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from crossmae.checkpoint import load
from crossmae.figures import draw_confusion
from crossmae.files import make_folder, replacing
from crossmae.model import MaskedAutoencoder
from crossmae.training.data.batches import Batch, loader
from crossmae.training.data.config import DataConfig
from crossmae.training.data.dataset import ImageDataset, Images
from crossmae.training.data.factory import open_images
from crossmae.training.devices import device_kind
from crossmae.training.feature_cache import FeatureCache
from crossmae.training.finetuning.evaluation import BATCH, Judged
from crossmae.training.finetuning.labels import Classes, classes_of
from crossmae.training.finetuning.run import with_statistics
from crossmae.training.linear_probe import AttentiveProbe, LinearProbe, ProbeRecipe, fitted, logits
from crossmae.training.probe import LabelledFeatures, Pooling, encoder_features, knn_predictions


class _Case(NamedTuple):
    """A checkpoint, ready to be probed."""

    checkpoint: str
    model: MaskedAutoencoder
    images: ImageDataset
    classes: Classes


def run(
    checkpoints: list[str],
    data: DataConfig,
    out: str,
    image_size: int | None,
    pooling: Pooling,
    attentive: bool,
    recipe: ProbeRecipe,
    load_options: dict[str, Any],
) -> None:
    """Probe all checkpoints and write the table, pictures and features to the folder ``out``."""
    folder = Path(out)
    cases = [_case(checkpoint, data, image_size, load_options) for checkpoint in dict.fromkeys(checkpoints)]
    if remark := cases[0].classes.remark:
        print(f"Classes: {remark}.")
    if attentive:
        numbers = sum(map(_tokens, cases))
        print(f"All tokens of all images take {4 * numbers / 2**30:,.1f} GiB on disk, and one checkpoint's in memory.")
    make_folder(folder)
    results = [_probed(case, folder, pooling, attentive, recipe) for case in cases]
    table = tabulate(
        [
            {name: f"{value:.1%}" if isinstance(value, float) else value for name, value in result.items()}
            for result in results
        ],
        headers="keys",
        tablefmt="github",
        disable_numparse=True,
    )
    tokens = "average of the patch tokens" if pooling == "average" else "class token"
    steps, _ = recipe.steps(len(cases[0].images))
    told = f"Features: {tokens}, without augmentation; linear probe of {steps:,} steps"
    print(f"\n{table}\n\n{told}. Confusion matrices and table: {folder}")
    with replacing(folder / "results.md") as beside:
        beside.write_text(f"{table}\n\n{told}.\n", "utf-8")
    with replacing(folder / "results.json") as beside:
        beside.write_text(json.dumps({**asdict(recipe), "pooling": pooling, "results": results}, indent=1), "utf-8")


def _case(checkpoint: str, data: DataConfig, image_size: int | None, load_options: dict[str, Any]) -> _Case:
    model = load(checkpoint, image_size, **load_options)
    own = with_statistics(data, model.config)
    images = open_images(own, model.config.channels, model.config.image_size, mask_noise=0)
    if own.mean is None:
        print(f"{checkpoint} stores no pixel statistics: using the images' own; set others by --mean and --std.")
    statistics = {f"pixel_{name}": getattr(images.data, name) for name in ("mean", "std")}
    model.config = replace(model.config, **statistics)
    model.register_pixel_statistics()
    return _Case(checkpoint, model.to(device_kind()), images, classes_of(images))


def _tokens(case: _Case) -> int:
    """How many numbers the tokens of all images hold."""
    config, held_out = case.model.config, case.images.evaluation
    images = len(case.images) + (0 if held_out is None else len(held_out))
    return images * (1 + config.patches) * config.encoder_width


def _probed(case: _Case, folder: Path, pooling: Pooling, attentive: bool, recipe: ProbeRecipe) -> dict[str, Any]:
    """Accuracies by each kind of probe, with a confusion matrix drawn for each."""
    result: dict[str, Any] = {"checkpoint": case.checkpoint}
    train, test = _features(case, folder, pooling)
    count, width, device = len(case.classes.names), case.model.config.encoder_width, device_kind()
    result["kNN"] = _judged(case, folder, "knn", test, knn_predictions(train, test))
    torch.manual_seed(recipe.seed)
    probes = {"linear": (LinearProbe(width, count), train, test)}
    if attentive:
        torch.manual_seed(recipe.seed)
        probes["attentive"] = (
            AttentiveProbe(width, count, case.model.config.encoder_heads),
            *_features(case, folder, "tokens"),
        )
    for name, (probe, known, asked) in probes.items():
        scores = logits(fitted(probe, known, recipe, device), asked)
        best = scores.topk(min(5, count), dim=1).indices
        result[name] = _judged(case, folder, name, asked, best[:, 0])
        result[f"{name}, top 5"] = float((best == asked.labels[:, None]).any(dim=1).double().mean())
    return result


def _judged(case: _Case, folder: Path, how: str, test: LabelledFeatures, predicted: Tensor) -> float:
    """Draw the confusion matrix of predictions ``(N,)``; returns their accuracy."""
    count = len(case.classes.names)
    confusion = torch.bincount(test.labels * count + predicted, minlength=count * count).view(count, count)
    name = re.sub(r"[^\w.-]+", "_", case.checkpoint).strip("_")
    draw_confusion(confusion, case.classes.names, folder / f"confusion-{name}-{how}.png")
    return int(confusion.trace()) / int(confusion.sum())


def _features(case: _Case, folder: Path, pooling: Pooling) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Features of the training and the held-out images; unreadable ones are left out and named."""
    images = case.images
    assert images.evaluation is not None  # classes_of refuses it
    return (
        _of_part(case, folder, images.images, "training", pooling),
        _of_part(case, folder, images.evaluation, "held-out", pooling),
    )


def _of_part(case: _Case, folder: Path, images: Images, part: str, pooling: Pooling) -> LabelledFeatures:
    workers = case.images.data.workers
    settings = {**asdict(case.images.data), "workers": None, "config": case.model.config.to_dict(), "pooling": pooling}

    def made() -> LabelledFeatures:
        unreadable: dict[str, None] = {}
        parts = [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
        batches: Iterable[Batch] = loader(Judged(images), parts, workers, device_kind())
        with tqdm(batches, desc=f"{part} images of {case.checkpoint}", unit="batch") as line:
            seen = (unreadable.update(dict.fromkeys(batch.unreadable)) or batch for batch in line)
            found = encoder_features(case.model, seen, pooling)
        if unreadable:
            print(f"{len(unreadable):,} {part} images are left out, such as: {next(iter(unreadable))}")
        known = found.labels >= 0
        return LabelledFeatures(found.values[known], found.labels[known])

    return FeatureCache(folder / "features").features(case.checkpoint, images.source, settings, made)
