"""The command line: ``crossmae <command> --help``."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from inspect import signature
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser

from crossmae.training.recipe import Recipe, RunOptions, read_recipes


def flops(figure: str = "flops.png") -> None:
    """Decoder cost of CrossMAE and MAE in closed form.

    Prints multiply-accumulates of a forward pass per image, for ViT-S/B/L/H, prediction ratios .25/.5/.75 and
    224/448 pixels, with the ratio to MAE, in two conventions: all matrix multiplications, and the paper's (two
    FLOPs per multiply-accumulate, attention itself left out). Draws the first as a picture.

    Args:
        figure: where to write the picture.
    """
    from tabulate import tabulate

    from crossmae.figures import draw_cost
    from crossmae.flops import cost_table

    rows = cost_table()
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f"))
    draw_cost(rows, figure)
    print(f"\nPicture: {figure}")


def demo(out: str = "demo", steps: int = 600) -> None:
    """Pretrain a tiny CrossMAE and a tiny MAE on real digits and compare them.

    Both see the same images in the same order. Measures decode compute and time, evaluates both encoders on
    held-out digits beside raw pixels and an untrained encoder, and writes reconstructions.png, learning.png
    and results.md. A few minutes on two CPU cores.

    Args:
        out: folder for pictures and table; made if it is missing.
        steps: training steps of each model.
    """
    from crossmae.demo import run

    run(out, steps)


def pretrain(recipe: Recipe, options: RunOptions) -> None:
    """Pretrain an encoder on images.

    Takes a folder of images (nested or flat; train/ and val/ as ImageNet has them), WebDataset shards or a bundled set,
    and writes the model, checkpoints to go on from, curves and pictures into a folder. On all accelerators of this
    machine or, started by torchrun, of many.
    """
    from crossmae.training.run import pretrain as run

    if run(recipe, options) is not None:
        print(f"The model: {options.out}/model.safetensors, for crossmae.load.")


def check(json: bool = False, interpret: bool = False) -> int:
    """Check every op on this machine against float64.

    Runs each op forward and backward in every dtype and prints its error beside its error budget; cross-attention
    also beside scaled_dot_product_attention with each backend forced, flash-attn and xformers. On a CPU the
    references run, and with --interpret the Triton kernels. Exit code 1 if an implementation of ours is wrong.
    """
    from crossmae_kernels.check import main as run

    return run(["--json"] * json + ["--interpret"] * interpret)


def reconstruct(
    images: list[str],
    checkpoint: str,
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
    random patches, another choice for every image and seed, and decodes all of them. Prints the loss on them, and
    where brightness and contrast come from if the model was trained on normalised pixels.

    Args:
        checkpoint: a checkpoint that crossmae.load takes: of this package, of CrossMAE's or MAE's release, or a folder
            of a run or of Hugging Face's ViTMAE.
        mask_ratio: share of patches to hide.
        seed: of the masks.
        out: where to write the picture.
        statistics: brightness and contrast of normalised pixels: interpolated between the visible patches, or the
            hidden patches' true ones, which leaks them.
        mixing: where to write the learned mixing weights as a heat map; not drawn unless given.
        load_options: arguments of crossmae.load that the checkpoint does not tell, such as
            --load_options.num_heads 3 or --load_options.key model_ema.
    """
    from crossmae.reconstruct_command import run

    run(images, checkpoint, mask_ratio, seed, out, statistics, mixing, blocks, norm_pix_loss, load_options or {})


_COMMANDS: dict[str, tuple[Callable[..., int | None], str]] = {
    "check": (check, "crossmae check --interpret"),
    "demo": (demo, "crossmae demo --out demo"),
    "flops": (flops, "crossmae flops --figure flops.png"),
    "pretrain": (pretrain, "crossmae pretrain --recipe vit_base+gamma25 --data.source my_pictures --out run"),
    "reconstruct": (reconstruct, "crossmae reconstruct cat.jpg --checkpoint model.safetensors"),
}

_HELP = {
    "blocks": "also draw the reconstruction as it stands behind each decoder block",
    "dry_run": "print the plan and do nothing",
    "strict": "stop at the first image that cannot be read, instead of taking the next one and logging its name",
    "images": "pictures, TIFF files or .npy arrays",
    "interpret": "run the kernels on the CPU, in Triton's interpreter",
    "json": "one list of records instead of a table",
    "norm_pix_loss": "the model was trained on normalised pixels, for a release's checkpoint that does not tell",
}


class _RecipeFiles(ActionConfigFile):
    """Files of settings, which may also be named by the name of a recipe."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply each of those joined by +, in order."""
        super().__call__(parser, cfg, json.dumps(read_recipes(values.split("+"))), option_string)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. An expected failure is one line on standard error."""
    parser = ArgumentParser(prog="crossmae", description="CrossMAE with fused kernels: benchmarks, training, checks.")
    commands = parser.add_subcommands(required=True)
    for name, (function, example) in _COMMANDS.items():
        command = ArgumentParser(description=_description(function.__doc__ or ""), epilog=f"Example: {example}")
        _add_options(command, function)
        commands.add_subcommand(name, command, help=(function.__doc__ or "").partition("\n")[0])
    try:
        chosen = parser.parse_args(arguments)
        function = _COMMANDS[chosen.subcommand][0]
        return function(**_arguments(function, parser.instantiate(chosen)[chosen.subcommand])) or 0
    except (ValueError, RuntimeError, OSError) as error:
        print(f"crossmae {(arguments or sys.argv[1:])[0]}: {error}", file=sys.stderr)
        return 1


def _add_options(command: ArgumentParser, function: Callable[..., int | None]) -> None:
    """One option for each parameter of a function; of a parameter that is a dataclass, one for each field.

    A list of files is given without the name of an option.
    """
    kinds: list[Any] = [p.annotation for p in signature(function).parameters.values() if is_dataclass(p.annotation)]
    if Recipe in kinds:
        command.add_argument("--recipe", action=_RecipeFiles, help="recipes by name, or files of settings, joined by +")
    flags = [
        p.name for part in kinds or [function] for p in signature(part).parameters.values() if p.annotation is bool
    ]
    for kind in kinds:
        command.add_class_arguments(kind, skip=set(flags))
    if not kinds:
        several = [p.name for p in signature(function).parameters.values() if p.annotation == list[str]]
        for name in several:
            command.add_argument(name, nargs="+", help=_HELP[name])
        command.add_function_arguments(function, as_group=False, skip={*flags, *several})
    for flag in flags:
        spellings = dict.fromkeys((f"--{flag.replace('_', '-')}", f"--{flag}"))
        command.add_argument(*spellings, action="store_true", help=_HELP[flag])


def _arguments(function: Callable[..., int | None], options: Any) -> dict[str, Any]:
    """Options back to the function's arguments."""
    arguments: dict[str, Any] = {}
    for name, parameter in signature(function).parameters.items():
        make = parameter.annotation
        fields = signature(make).parameters if is_dataclass(parameter.annotation) else ()
        arguments[name] = make(**{field: options[field] for field in fields}) if fields else options[name]
    return arguments


def _description(docstring: str) -> str:
    """The docstring down to its list of arguments, which the parser prints itself."""
    return docstring.partition("Args:")[0].strip()


if __name__ == "__main__":
    sys.exit(main())
