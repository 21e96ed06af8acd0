"""Command-line options from the signatures and docstrings of functions."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from inspect import signature
from typing import Any, NoReturn, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser

from crossmae.commands.messages import in_plain_words, missing
from crossmae.planning.fleet import PlanOptions, settings_of_a_plan
from crossmae.training.recipe import TrainingRecipe, read_recipes

_HELP = {
    "depths": "decoder blocks of CrossMAE; by default the model's own",
    "executions": "eager, compiled by torch.compile, by default or with max-autotune, or replayed from a CUDA graph",
    "formulations": "this package as it runs here, its Triton kernels without a fallback, its operations in plain "
    "PyTorch, or the formulation of CrossMAE's release",
    "prediction_ratios": "fractions of all patches that CrossMAE predicts",
    "attentive": "also train an attentive probe, which needs the features of all tokens",
    "blocks": "also draw the reconstruction after each decoder block",
    "destination": "file or new folder to write",
    "checkpoints": "anything crossmae.load takes: files, or folders that hold one",
    "devices": "names of GPUs, such as h100 and l4; by default one of each architecture",
    "dtypes": "any of bf16, fp16, fp32 and tf32; by default all",
    "dry_run": "print the plan and do nothing",
    "strict": "stop at the first unreadable image, instead of logging its name and taking the next one",
    "images": "pictures, TIFF files or .npy arrays",
    "interpret": "run the kernels on the CPU, in Triton's interpreter",
    "json": "numbers as JSON instead of a table",
    "path": "a checkpoint that crossmae.load reads, file or folder",
    "short": "each kernel once, in bfloat16 unless dtypes are given",
    "kernels": "names of kernels; by default all",
    "ops": "names of operations; by default all",
    "norm_pix_loss": "the model was trained on normalised pixels; for a release's checkpoint that does not say so",
}

# jsonargparse's own; the variable is needed because this option replaced another one, --print_shtab.
_COMPLETION = (
    "Completion for bash, zsh or fish, if the package shtab is installed: "
    "JSONARGPARSE_ADD_PRINT_COMPLETION_ARGUMENT=true crossmae --print_completion=shtab-bash"
)

_FILES = ("path", "destination")


class _Parser(ArgumentParser):
    """A parser that reports errors in one line, like everything here."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self.commands: dict[str, ArgumentParser] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with code 2."""
        name = (getattr(ex, "subcommand_parser", None) or self).prog.replace(" [options]", "")
        said = in_plain_words(" ".join(message.split()))
        if needed := re.fullmatch(r"the following arguments are required: ((\w+)\..*)", said):
            name = f"{self.prog} {needed[2]}"
            actions = self.commands[needed[2]]._actions
            said = missing(needed[1], {action.dest: action.option_strings for action in actions})
        elif unknown := re.match(r"argument subcommand: invalid choice: ('.*?') ", said):
            said = f"there is no command {unknown[1]}, there are {', '.join(self.commands)}"
        elif said.startswith('expected "subcommand"'):
            said = f"give a command: {', '.join(self.commands)}"
        self.exit(2, f"{name}: error: {said}; see {name} --help\n")


class _RecipeFiles(ActionConfigFile):
    """Files of settings, or names of recipes."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply those joined by +, in order."""
        super().__call__(parser, cfg, json.dumps(self.read(values.split("+"))), option_string)

    def read(self, names: list[str]) -> dict[str, Any]:
        """All settings."""
        return read_recipes(names)


class _PlannedRecipeFiles(_RecipeFiles):
    """Of these the settings that a plan takes."""

    def read(self, names: list[str]) -> dict[str, Any]:
        """All but those of a run that leave its cost as it is."""
        return settings_of_a_plan(read_recipes(names))


def parser_of(commands: Mapping[str, tuple[Callable[..., int | None], str]]) -> ArgumentParser:
    """A parser with a subcommand for each function, given with an example of its use."""
    parser = _Parser(
        prog="crossmae",
        description="CrossMAE with fused kernels: benchmarks, training, checks.",
        epilog=f"Example: crossmae bench. {_COMPLETION}",
    )
    subcommands = parser.add_subcommands(required=True)
    for name, (function, example) in commands.items():
        command = _Parser(description=_description(function.__doc__ or ""), epilog=f"Example: {example}")
        _add_options(command, function)
        subcommands.add_subcommand(name, command, help=(function.__doc__ or "").partition("\n")[0])
        parser.commands[name] = command
    return parser


def _add_options(command: ArgumentParser, function: Callable[..., int | None]) -> None:
    """Add one option per parameter of a function, or per field if the parameter is a dataclass.

    Lists of files, and ``convert``'s source and destination, are positional; other sequences are options that take
    several values.
    """
    kinds: list[Any] = [p.annotation for p in signature(function).parameters.values() if is_dataclass(p.annotation)]
    if any(issubclass(kind, TrainingRecipe) for kind in kinds):
        action = _PlannedRecipeFiles if PlanOptions in kinds else _RecipeFiles
        command.add_argument("--recipe", action=action, help="recipes by name, or files of settings, joined by +")
    flags = [
        p.name for part in kinds or [function] for p in signature(part).parameters.values() if p.annotation is bool
    ]
    for kind in kinds:
        command.add_class_arguments(kind, skip=set(flags))
    if not kinds:
        several = {p.name for p in signature(function).parameters.values() if p.annotation == list[str]}
        files = [name for name in signature(function).parameters if name in (*several, *_FILES)]
        for name in files:
            command.add_argument(name, nargs="+" if name in several else None, help=_HELP[name])
        sequences = [p for p in signature(function).parameters.values() if get_origin(p.annotation) is Sequence]
        command.add_function_arguments(function, as_group=False, skip={*flags, *files, *(p.name for p in sequences)})
        for p in sequences:
            (kind,) = get_args(p.annotation)
            command.add_argument(f"--{p.name}", nargs="+", type=kind, default=list(p.default), help=_HELP[p.name])
    for flag in flags:
        command.add_argument(f"--{flag}", action="store_true", help=_HELP[flag])


def with_underscores(word: str) -> str:
    """Spell an option as defined, such as ``--dry_run`` for ``--dry-run``; other words, and values, are unchanged."""
    name, sign, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{sign}{value}" if word.startswith("--") else word


def arguments_of(function: Callable[..., int | None], options: Any) -> dict[str, Any]:
    """The function's arguments from its parsed options."""
    arguments: dict[str, Any] = {}
    for name, parameter in signature(function).parameters.items():
        make = parameter.annotation
        fields = signature(make).parameters if is_dataclass(parameter.annotation) else ()
        arguments[name] = make(**{field: options[field] for field in fields}) if fields else options[name]
    return arguments


def _description(docstring: str) -> str:
    """The docstring up to its list of arguments, which the parser prints itself."""
    return docstring.partition("Args:")[0].strip()
