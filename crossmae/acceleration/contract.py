"""A model's calling convention: its arguments and the structure of its output."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The release's names for the two ratios.
MASK_RATIO, PREDICTION_RATIO = "mask_ratio", "kept_mask_ratio"


@dataclass(frozen=True)
class Result:
    """Marks where one of our results goes in a model's output, and its dtype there if it differs."""

    name: str
    detached: bool = False
    dtype: torch.dtype | None = None


# A call's output: results, None, and tuples, lists and dicts of them.
Template = Any

# Whether in training mode, and the values of the Boolean arguments.
Setting = tuple[bool, ...]


@dataclass(frozen=True)
class Contract:
    """How a model is called and what it returns.

    ``defaults`` holds all parameters by name, in order, images first; ``flags`` are the Boolean ones; ``outputs`` has
    the template of the output in each setting.
    """

    defaults: dict[str, Any]
    flags: tuple[str, ...]
    outputs: dict[Setting, Template]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The values of all parameters in a call.

        Raises:
            TypeError: if the model's own forward does not take the arguments.
            ValueError: if a parameter of unknown meaning has a value other than its default.
        """
        names = list(self.defaults)
        if len(args) > len(names):
            raise TypeError(f"forward takes ({', '.join(names)}), got {len(args)} arguments")
        for name in kwargs:
            if name not in self.defaults:
                raise TypeError(f"forward takes ({', '.join(names)}), got {name}=")
            if name in names[: len(args)]:
                raise TypeError(f"forward got {name} twice")
        values = {**self.defaults, **dict(zip(names, args, strict=False)), **kwargs}
        if values[names[0]] is inspect.Parameter.empty:
            raise TypeError(f"forward needs {names[0]}")
        for name in names[1:]:
            value, default = values[name], self.defaults[name]
            known = name in (MASK_RATIO, PREDICTION_RATIO) or name in self.flags
            if not known and value is not default and (isinstance(value, Tensor) or value != default):
                raise ValueError(f"forward: {name} is supported only at its default {default!r}")
        return values

    def template(self, training: bool, values: Mapping[str, Any]) -> Template:
        """The template of the output of a call with these values."""
        return self.outputs[training, *(bool(values[name]) for name in self.flags)]


def results_in(template: Template) -> set[str]:
    """Names of the results in a template."""
    if template is None:
        return set()
    if isinstance(template, Result):
        return {template.name}
    return set().union(*map(results_in, template.values() if isinstance(template, dict) else template))


def filled(template: Template, results: Mapping[str, Tensor]) -> Any:
    """The template, filled with results."""
    if template is None:
        return None
    if isinstance(template, Result):
        result = results[template.name]
        result = result if template.dtype is None else result.to(template.dtype)
        return result.detach() if template.detached else result
    if isinstance(template, dict):
        return {name: filled(part, results) for name, part in template.items()}
    return type(template)(filled(part, results) for part in template)


def parameters_of(model: nn.Module) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Defaults by name, and the Boolean parameters, of a model's forward.

    Raises:
        ValueError: if the model has no forward of its own, or it does not take images and a mask ratio.
    """
    kind = type(model)
    if kind.forward is nn.Module.forward:
        raise ValueError(f"accelerate: {kind.__name__} has no forward whose arguments and results could be kept")
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    fixed = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    open_ended = [p.name for p in parameters[1:] if p.default is p.empty]
    ratio = next((p.default for p in parameters if p.name == MASK_RATIO), None)
    if not fixed or not parameters or open_ended or not isinstance(ratio, float):
        raise ValueError(
            f"accelerate: {kind.__name__}.forward must take images, {MASK_RATIO} with a number as default, and others "
            f"with defaults, got ({', '.join(map(str, parameters))})"
        )
    return {p.name: p.default for p in parameters}, tuple(p.name for p in parameters if isinstance(p.default, bool))
