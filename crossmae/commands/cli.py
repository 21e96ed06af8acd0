"""The command line: ``crossmae <command> --help``.

A command is a function whose parameters are its options. Those that train and those that check kernels are here.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from crossmae.commands.checkpoints import convert, probe, reconstruct
from crossmae.commands.costs import bench, flops
from crossmae.detection.recipe import DetectionOptions, DetectionRecipe
from crossmae.planning.fleet import PlanOptions
from crossmae.training.finetuning.recipe import FinetuningOptions, FinetuningRecipe
from crossmae.training.recipe import Recipe, RunOptions
from crossmae_kernels.command import run_command
from crossmae_kernels.extras import require


def demo(out: str = "demo", steps: int = 600) -> None:
    """Pretrain a tiny CrossMAE and a tiny MAE on real digits and compare them.

    Both see the same images in the same order. Measures decode compute and time, compares both encoders with
    raw pixels and an untrained encoder on held-out digits, and writes reconstructions.png, ratios.png
    (predictions at three prediction ratios), learning.png and results.md. A few minutes on two CPU cores.

    Args:
        out: folder for the pictures and the table; created if missing.
        steps: training steps of each model.
    """
    require("train")
    from crossmae.commands.demo import run

    run(out, steps)


def pretrain(recipe: Recipe, options: RunOptions) -> int:
    """Pretrain an encoder on images.

    Takes a folder of images (nested, flat, or with train/ and val/ like ImageNet), WebDataset shards or a bundled set,
    and writes the model, checkpoints to resume from, curves and pictures into a folder. Uses all accelerators of this
    machine or, under torchrun, of several. On Ctrl-C and SIGTERM it saves its state and stops with code 130 or 143.
    """
    require("train")
    from crossmae.training.run import prepare

    run = prepare(recipe, options)
    if run is None:
        return 0
    run.fit()
    print(f"The model is in {options.out}/model.safetensors, for crossmae.load.")
    return 0 if run.stopped_by is None else 128 + run.stopped_by


def plan(recipe: Recipe, options: PlanOptions) -> None:
    """Predict what pretraining costs on GPUs you need not have.

    Predicts the time of a step, an epoch and the run, GPU-hours, memory per GPU and communication, for the recipe's
    model and for the model of the same size with the other decoder (MAE's or CrossMAE's). To do so it compiles the
    kernels of a step, which takes a minute or two the first time. Nothing is measured; the assumptions are printed.
    """
    from crossmae.commands.plan import run

    run(recipe, options)


def finetune(recipe: FinetuningRecipe, options: FinetuningOptions) -> int:
    """Fine-tune an encoder to classify images.

    Takes a checkpoint that crossmae.load reads, and images: train/ and val/, each with a subfolder for each class,
    WebDataset shards with labels, or a bundled set. Measures top-1 and top-5 accuracy on held-out images and draws
    curves and a confusion matrix. Its folder is like that of pretrain, and a stopped run resumes in it.
    """
    require("train")
    from crossmae.training.finetuning.run import prepare

    run = prepare(recipe, options)
    if run is None:
        return 0
    run.fit()
    print(f"The encoder is in {options.out}/model.safetensors, the classifiers in {options.out}/checkpoints.")
    return 0 if run.stopped_by is None else 128 + run.stopped_by


def detect(recipe: DetectionRecipe, options: DetectionOptions) -> int:
    """Train a detector on a pretrained encoder, or evaluate one: instance segmentation by ViTDet and Mask R-CNN.

    Takes annotations in COCO's format, trains torchvision's Mask R-CNN with the encoder as ViTDet's backbone, and
    writes checkpoints to resume from, curves, COCO's average precision and pictures of detections into a folder. With
    --evaluate it only evaluates a checkpoint. Starts, stops and resumes like crossmae pretrain.
    """
    require("train")
    require("detect")
    if options.evaluate is not None:
        from crossmae.detection.standalone import evaluate

        evaluate(Path(options.evaluate), recipe, options)
        return 0
    from crossmae.detection.run import prepare

    run = prepare(recipe, options)
    if run is None:
        return 0
    run.fit()
    print(f"The detector is in {options.out}, for crossmae detect --evaluate.")
    return 0 if run.stopped_by is None else 128 + run.stopped_by


def audit(
    devices: Sequence[str] = (),
    ops: Sequence[str] = (),
    kernels: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    batch: int = 256,
    short: bool = False,
    json: bool = False,
    html: str | None = None,
    model: str | None = None,
    device: str | None = None,
) -> int:
    """Compile every kernel for GPUs you need not have, and predict its time.

    Prints registers, spills, shared memory, programs per multiprocessor, bytes moved relative to those of its tensors,
    and an interval for the time with what limits it, all from the machine code. Exit code 1 if a kernel spills, does
    not fit, or leaves tensor cores or wide loads unused.

    With --html it draws a page instead, which needs no network: training steps of CrossMAE and MAE, by this package and
    by plain PyTorch. Compiling the kernels of a model takes some minutes.

    Args:
        batch: number of images.
        html: write the page to this file.
        model: with --html, the CrossMAE to draw beside the MAE of the same size; by default crossmae_vit_base_patch16.
        device: with --html, the name of a GPU; by default h100.
    """
    selections = {"devices": devices, "ops": ops, "kernels": kernels, "dtypes": dtypes}
    if html is not None:
        for name, given in {**selections, "short": short, "json": json}.items():
            if given:
                raise ValueError(f"--{name} applies to the table; --html takes --model, --device and --batch")
        require("figures", "plotly")
        require("", "triton")
        os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing
        from crossmae.commands.audit import run as draw

        draw(html, model or "crossmae_vit_base_patch16", device or "h100", batch)
        return 0
    for name, choice in (("model", model), ("device", device)):
        if choice is not None:
            raise ValueError(f"--{name} applies to the page that --html writes; the table takes --devices")
    from crossmae_kernels.audit.__main__ import main as run

    words = [f"--batch={batch}", *["--short"] * short, *["--json"] * json]
    for name, chosen in selections.items():
        words += [f"--{name}", *chosen] if chosen else []
    return run(words, "crossmae audit")


def check(json: bool = False, interpret: bool = False) -> int:
    """Check every operation on this machine against float64.

    Runs each operation forward and backward in every dtype and prints its error beside its error budget; for
    cross-attention also the errors of scaled_dot_product_attention with each backend, flash-attn and xformers. On a CPU
    the references run, and with --interpret the Triton kernels too. Exit code 1 if a result of this package is wrong.
    Some minutes on two CPU cores.
    """
    from crossmae_kernels.check import main as run

    return run(["--json"] * json + ["--interpret"] * interpret)


def tune(
    model: str = "crossmae_vit_base_patch16",
    batch: int = 256,
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    prediction_ratio: float | None = None,
    model_options: dict[str, Any] | None = None,
) -> None:
    """Tune the operations of a model for this GPU before training.

    Runs training steps and validation steps, as models are by default and as the recipes for GPUs set them (residual,
    hidden_layer; or as model_options say), and times, for each operation, its alternative implementations (library
    products included) and the tiles of each kernel, however long that takes. Prints the default choice, the fastest and
    the gain. The choices are saved for later processes on the same GPU model with the same versions.

    Args:
        model: name of the model; see crossmae.list_models.
        batch: images per device and pass; choices hold for batches of the same order of magnitude.
        precision: dtype of autocast, or float32.
        prediction_ratio: share of all patches to predict; by default the model's own.
        model_options: fields of crossmae.Config, such as --model_options.residual autocast.
    """
    from crossmae.commands.tune import run

    run(model, batch, precision, prediction_ratio, model_options or {})


_COMMANDS: dict[str, tuple[Callable[..., int | None], str]] = {
    "audit": (audit, "crossmae audit --short --devices h100"),
    "bench": (bench, "crossmae bench --model crossmae_vit_large_patch16 --prediction-ratios 0.25 0.75 --batch 4"),
    "check": (check, "crossmae check --interpret"),
    "convert": (convert, "crossmae convert model.safetensors vit_timm --to timm"),
    "demo": (demo, "crossmae demo --out demo"),
    "detect": (detect, "crossmae detect --recipe vitdet_base --checkpoint run --data.train train.json --out detector"),
    "finetune": (
        finetune,
        "crossmae finetune --recipe finetune_base --checkpoint model.safetensors --data.source imagenet --out tuned",
    ),
    "flops": (flops, "crossmae flops --figure flops.png"),
    "plan": (plan, "crossmae plan --recipe vit_base+gamma25 --images 1.28e6 --epochs 800 --gpus 64 --device h100"),
    "pretrain": (pretrain, "crossmae pretrain --recipe vit_base+gamma25 --data.source my_pictures --out run"),
    "probe": (probe, "crossmae probe crossmae.pth mae.pth --source imagenet --share 0.875"),
    "reconstruct": (reconstruct, "crossmae reconstruct cat.jpg --checkpoint model.safetensors"),
    "tune": (tune, "crossmae tune --model crossmae_vit_large_patch16 --batch 512"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. An expected failure is one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if word in _COMMANDS), None)
    return run_command(f"crossmae {command}" if command else "crossmae", lambda: _run(words))


def _run(words: list[str]) -> int | None:
    from crossmae.commands.options import arguments_of, parser_of, with_underscores

    parser = parser_of(_COMMANDS)
    chosen = parser.parse_args(list(map(with_underscores, words)))
    function = _COMMANDS[chosen.subcommand][0]
    return function(**arguments_of(function, parser.instantiate(chosen)[chosen.subcommand]))
