"""The command line: ``crossmae <command> --help``."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from crossmae.benchmark.decode import Execution, Formulation
from crossmae.detection.recipe import DetectionOptions, DetectionRecipe
from crossmae.export import Target
from crossmae.masking import MaskShape
from crossmae.planning.fleet import PlanOptions
from crossmae.training.finetuning.recipe import FinetuningOptions, FinetuningRecipe
from crossmae.training.recipe import Recipe, RunOptions
from crossmae_kernels.command import reason, run_command
from crossmae_kernels.extras import MissingPackageError, require


def flops(figure: str | None = None) -> None:
    """Decoder cost of CrossMAE and MAE in closed form.

    Prints multiply-accumulates of a forward pass per image, for ViT-S/B/L/H, prediction ratios .25/.5/.75 and
    224/448 pixels, with the ratio to MAE, in two conventions: all matrix multiplications, and the paper's (two
    FLOPs per multiply-accumulate, attention itself left out). Draws the first as a picture.

    Args:
        figure: where to write the picture; by default flops.png, if it can be drawn.
    """
    from tabulate import tabulate

    from crossmae.figures import draw_cost
    from crossmae.flops import cost_table

    rows = cost_table()
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f"))
    path = "flops.png" if figure is None else figure
    try:
        draw_cost(rows, path)
    except (MissingPackageError, OSError) as error:
        if figure is not None:
            raise
        print(f"crossmae flops: no picture: {reason(error)}", file=sys.stderr)  # it was not asked for
    else:
        print(f"\nPicture: {path}")


def bench(
    model: str = "crossmae_vit_base_patch16",
    image_size: int | None = None,
    prediction_ratios: Sequence[float] = (0.25, 0.5, 0.75),
    depths: Sequence[int] = (),
    mask_ratio: float = 0.75,
    batch: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    device: str | None = None,
    formulations: Sequence[Formulation] = ("ours", "release"),
    executions: Sequence[Execution] = ("eager",),
    rounds: int = 5,
    out: str = "bench",
) -> int:
    """Decoding by CrossMAE and by MAE on this machine, in arithmetic and in time.

    Times decoders alone, forward and backward, on random feature maps, all in turn, round by round, so that other work
    on the machine slows all alike. Prints times and speed-ups over MAE beside multiply-accumulates in closed form and
    as PyTorch's FLOP counter sees them, and writes table, numbers (JSON) and a picture into a folder. Exit code 1 if
    something that was asked for could not be timed. With the defaults some two minutes on two CPU cores.

    Args:
        model: a CrossMAE, whose decoder is compared with that of the MAE of the same size; see crossmae.list_models.
        image_size: side of the images in pixels; the model's own unless given.
        mask_ratio: share of patches hidden from the encoder.
        batch: images; by default 8 on a CPU and 256 elsewhere.
        dtype: of products, by autocast unless float32; by default float32 on a CPU and bfloat16 elsewhere.
        device: "cpu", "cuda", "cuda:1" and so on; by default a GPU if there is one.
        rounds: how often each is timed; the median counts.
        out: folder for table, numbers and picture; created if missing.
    """
    from crossmae.commands.bench import run, setting_of

    setting = setting_of(
        model, image_size, prediction_ratios, depths, mask_ratio, batch, dtype, device, formulations, executions, rounds
    )
    return run(setting, model, out)


def demo(out: str = "demo", steps: int = 600) -> None:
    """Pretrain a tiny CrossMAE and a tiny MAE on real digits and compare them.

    Both see the same images in the same order. Measures decode compute and time, evaluates both encoders on
    held-out digits beside raw pixels and an untrained encoder, and writes reconstructions.png, ratios.png
    (predictions at three prediction ratios), learning.png and results.md. A few minutes on two CPU cores.

    Args:
        out: folder for pictures and table; created if missing.
        steps: training steps of each model.
    """
    require("train")
    from crossmae.commands.demo import run

    run(out, steps)


def pretrain(recipe: Recipe, options: RunOptions) -> int:
    """Pretrain an encoder on images.

    Takes a folder of images (nested or flat; train/ and val/ as ImageNet has them), WebDataset shards or a bundled set,
    and writes the model, checkpoints to resume from, curves and pictures into a folder. Uses all accelerators of this
    machine or, started by torchrun, of many. On Ctrl-C and SIGTERM it saves its state and stops with
    exit code 130 or 143.
    """
    require("train")
    from crossmae.training.run import prepare

    run = prepare(recipe, options)
    if run is None:
        return 0
    run.fit()
    print(f"The model: {options.out}/model.safetensors, for crossmae.load.")
    return 0 if run.stopped_by is None else 128 + run.stopped_by


def plan(recipe: Recipe, options: PlanOptions) -> None:
    """What pretraining costs on GPUs that are not there.

    Predicts the time of a step, an epoch and the run, GPU-hours, the memory of a GPU and what GPUs send each other, for
    a recipe's model and for that of the same size with the other decoder, MAE's or CrossMAE's. Compiles the kernels of
    a step to do so, which takes a minute or two at first. Nothing is measured: what is taken for granted is printed.
    """
    from crossmae.commands.plan import run

    run(recipe, options)


def finetune(recipe: FinetuningRecipe, options: FinetuningOptions) -> int:
    """Fine-tune an encoder to classify images.

    Takes a checkpoint as crossmae.load does, and a folder of images with train/ and val/ and a subfolder for each class
    in both, WebDataset shards with labels or a bundled set. Measures top-1 and top-5 accuracy on held-out images, draws
    curves and a confusion matrix, and keeps a folder as pretrain does, in which a run that was stopped goes on.
    """
    require("train")
    from crossmae.training.finetuning.run import prepare

    run = prepare(recipe, options)
    if run is None:
        return 0
    run.fit()
    print(f"The encoder: {options.out}/model.safetensors, for crossmae.load; classifiers: {options.out}/checkpoints.")
    return 0 if run.stopped_by is None else 128 + run.stopped_by


def detect(recipe: DetectionRecipe, options: DetectionOptions) -> int:
    """Train a detector on a pretrained encoder, or evaluate one: instance segmentation by ViTDet and Mask R-CNN.

    Takes annotations in COCO's format, trains torchvision's Mask R-CNN with the encoder as ViTDet's backbone, and
    writes checkpoints to resume from, curves, COCO's average precision and pictures of what is found into a folder.
    With --evaluate it judges a checkpoint and stops. Runs and stops as crossmae pretrain does.
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
    print(f"The detector: {options.out}, for crossmae detect --evaluate.")
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
    """Compile every kernel for GPUs that are not there, and predict its time.

    Prints registers, spills, shared memory, programs on a multiprocessor, bytes moved over those of its tensors, and
    an interval for the time with what limits it, from the machine code alone. Exit code 1 if a kernel spills, does not
    fit, or leaves tensor cores or wide loads unused.

    With --html it draws instead: a training step of CrossMAE beside MAE's, and by this package beside plain PyTorch, as
    one page that needs no network. Some minutes for a model, of which the kernels are compiled.

    Args:
        batch: images.
        html: file of the page.
        model: on the page, a CrossMAE, beside MAE of the same size; crossmae_vit_base_patch16 unless given.
        device: on the page, name of a GPU; h100 unless given.
    """
    selections = {"devices": devices, "ops": ops, "kernels": kernels, "dtypes": dtypes}
    if html is not None:
        for name, given in {**selections, "short": short, "json": json}.items():
            if given:
                raise ValueError(f"--{name} is of the table; --html takes --model, --device and --batch")
        require("figures", "plotly")
        require("", "triton")
        os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing
        from crossmae.commands.audit import run as draw

        draw(html, model or "crossmae_vit_base_patch16", device or "h100", batch)
        return 0
    for name, choice in (("model", model), ("device", device)):
        if choice is not None:
            raise ValueError(f"--{name} is of the page, which --html writes; of the table there are --devices")
    from crossmae_kernels.audit.__main__ import main as run

    words = [f"--batch={batch}", *["--short"] * short, *["--json"] * json]
    for name, chosen in selections.items():
        words += [f"--{name}", *chosen] if chosen else []
    return run(words, "crossmae audit")


def check(json: bool = False, interpret: bool = False) -> int:
    """Check every op on this machine against float64.

    Runs each op forward and backward in every dtype and prints its error beside its error budget; cross-attention
    also beside scaled_dot_product_attention with each backend forced, flash-attn and xformers. On a CPU the
    references run, and with --interpret the Triton kernels. Exit code 1 if one of this package's results is wrong.
    """
    from crossmae_kernels.check import main as run

    return run(["--json"] * json + ["--interpret"] * interpret)


def reconstruct(
    images: list[str],
    checkpoint: str,
    masking: MaskShape = "random",
    mask_ratio: float = 0.75,
    seed: int = 0,
    out: str = "reconstruction.png",
    statistics: Literal["visible", "true"] = "visible",
    mixing: str | None = None,
    blocks: bool = False,
    norm_pix_loss: bool = False,
    load_options: dict[str, Any] | None = None,
) -> None:
    """Draw images, what the encoder sees of them, and the model's reconstruction.

    One row per image, of any size: each is scaled to cover the model's image size and cropped at its centre. Hides
    patches, different ones for every image and seed, and decodes all of them. Prints the loss on them, and where
    brightness and contrast come from if the model was trained on normalised pixels.

    Args:
        checkpoint: a checkpoint that crossmae.load reads: of this package, of CrossMAE's or MAE's release, or a folder
            of a run or of Hugging Face's ViTMAE.
        masking: which patches to hide: random ones, all but one of each cell of a grid, or a block.
        mask_ratio: share of patches to hide.
        seed: of the masks.
        out: where to write the picture.
        statistics: brightness and contrast of normalised pixels: interpolated between the visible patches, or the
            hidden patches' true ones, which leaks them.
        mixing: where to write a heat map of the learned mixing weights; not drawn by default.
        load_options: arguments of crossmae.load that the checkpoint does not contain, such as
            --load_options.num_heads 3 or --load_options.key model_ema.
    """
    require("train", "torchvision", "PIL", "tifffile", *(["matplotlib"] if mixing is not None else []))
    from crossmae.commands.reconstruct import run

    options = load_options or {}
    run(images, checkpoint, masking, mask_ratio, seed, out, statistics, mixing, blocks, norm_pix_loss, options)


def convert(path: str, destination: str, to: Target, load_options: dict[str, Any] | None = None) -> None:
    """Write a checkpoint in another library's format.

    Prints what is left out and what the library has to be told to give the model's own features. timm's and Hugging
    Face's models are new folders of config.json and model.safetensors, the others files of torch.save.

    Args:
        to: timm's VisionTransformer; hf, Hugging Face's ViTMAE for MAE and ViT else; torchvision's VisionTransformer;
            detectron2's ViT, the backbone of ViTDet; or release, that of CrossMAE or MAE, decoder included.
        load_options: arguments of crossmae.load that the checkpoint does not contain, such as
            --load_options.num_heads 3, or --load_options.image_size 448 to interpolate its positions.
    """
    from crossmae.commands.convert import run

    run(path, destination, to, load_options or {})


def probe(
    checkpoints: list[str],
    source: str,
    evaluation: str | None = None,
    out: str = "probe",
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    share: float = 1.0,
    workers: int = 4,
    pooling: Literal["average", "class"] = "average",
    attentive: bool = False,
    epochs: int | None = None,
    batch_size: int = 16384,
    base_learning_rate: float = 0.1,
    seed: int = 0,
    load_options: dict[str, Any] | None = None,
) -> None:
    """What frozen features of checkpoints tell of images.

    Classifies held-out images by the five nearest training images and by a linear probe as the papers train it: batch
    normalisation without affine parameters and a linear layer, LARS, no weight decay. Features are computed once, of
    centred images, and kept in the folder. Prints a table of all checkpoints and draws confusion matrices.

    Args:
        source: images with labels: a folder with train/ and val/ and a subfolder for each class in both, WebDataset
            shards, or a bundled set, "digits" or "photographs".
        evaluation: held-out images, where the source has none itself.
        out: folder for table, pictures and features; created if missing.
        image_size: side of the images in pixels; positions are interpolated.
        mean: of each channel of the pixels, where a checkpoint does not tell; found in the images unless given.
        std: standard deviation, likewise.
        share: how much of the height and width of the largest centred part is looked at; 0.875 is usual at 224 pixels.
        workers: processes that load images.
        pooling: the average of the patch tokens, or the class token.
        epochs: passes over the features; by default 90, or more where these are less than 1,000 steps.
        batch_size: features of a step; all of them where there are fewer.
        base_learning_rate: peak for 256 features, in proportion to batch_size.
        seed: of the probes' initialisation and order.
        load_options: arguments of crossmae.load that a checkpoint does not contain, such as --load_options.num_heads 3.
    """
    require("train")
    from crossmae.commands.probe import run
    from crossmae.training.data.config import DataConfig
    from crossmae.training.linear_probe import ProbeRecipe

    data = DataConfig(source, evaluation, mean=mean, std=std, evaluation_share=share, workers=workers)
    recipe = ProbeRecipe(epochs, batch_size, base_learning_rate, seed)
    run(checkpoints, data, out, image_size, pooling, attentive, recipe, load_options or {})


def tune(
    model: str = "crossmae_vit_base_patch16",
    batch: int = 256,
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    prediction_ratio: float | None = None,
    model_options: dict[str, Any] | None = None,
) -> None:
    """Time what a model may choose on this GPU, before it is trained.

    Takes a training step and a step of validation, and times in each operation its forms, a library's products among
    them, and the tiles of each kernel, however long that takes. Prints what the rules choose, what is faster and by
    how much. Later processes on this GPU model, with the same versions, find the choices on disk.

    Args:
        model: name of the model; see crossmae.list_models.
        batch: images that a device processes at a time; choices hold for the same order of magnitude.
        precision: of autocast, or float32.
        prediction_ratio: share of all patches to predict; the model's own unless given.
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
