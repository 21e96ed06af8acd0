"""What callers of a model may rely on: its arguments, what it returns and under which autocast it computes.

Nothing of it is assumed: the model's own forward is run, and ours has to agree with it, number by number.
"""

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

# Where everything that a call may return is told apart: visible, left out and predicted patches all differ in number.
_MASK_RATIO, _PREDICTION_RATIO = 0.5, 0.25

# The release's names for the two ratios.
MASK_RATIO, PREDICTION_RATIO = "mask_ratio", "kept_mask_ratio"

# In the root mean square, relative to the model's own result. Rounding in 16 bits, or in the 10 bits that float32
# convolutions have on tensor cores, adds up to about a tenth of these in the deepest of models.
_TOLERANCE_16_BIT, _TOLERANCE_CUDA, _TOLERANCE = 5e-2, 5e-3, 1e-4

# What a call returns: the name of a result, or a container of such.
Template = Any

# For every setting of the Boolean arguments: what a call returned, or its template.
Observed = dict[tuple[bool, ...], Any]


@dataclass(frozen=True)
class Contract:
    """How a model is called and what it returns.

    ``defaults`` of all parameters by name, in order, the images' first; ``flags`` are the Boolean ones; ``outputs`` has
    what is returned for each setting of the flags.
    """

    defaults: dict[str, Any]
    flags: tuple[str, ...]
    outputs: Observed

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Values of all parameters in a call.

        Raises:
            TypeError: on arguments that the model's own forward does not take.
            ValueError: on a value other than the default for a parameter whose meaning is not known.
        """
        names = list(self.defaults)
        unknown = [name for name in kwargs if name not in self.defaults]
        twice = [name for name in names[: len(args)] if name in kwargs]
        if len(args) > len(names) or unknown or twice:
            raise TypeError(f"forward takes ({', '.join(names)}), got {len(args)} positional, {', '.join(kwargs)}")
        values = {**self.defaults, **dict(zip(names, args, strict=False)), **kwargs}
        if values[names[0]] is inspect.Parameter.empty:
            raise TypeError(f"forward needs {names[0]}")
        for name in names[1:]:
            known = name in (MASK_RATIO, PREDICTION_RATIO) or name in self.flags
            if not known and values[name] is not self.defaults[name]:
                raise ValueError(f"forward: {name} is served at its default {self.defaults[name]!r} only")
        return values

    def template(self, values: Mapping[str, Any]) -> Template:
        """What a call with these values returns."""
        return self.outputs[tuple(bool(values[name]) for name in self.flags)]


def results_in(template: Template) -> set[str]:
    """Names of the results that a template wants."""
    if template is None:
        return set()
    if isinstance(template, str):
        return {template}
    return set().union(*map(results_in, template.values() if isinstance(template, dict) else template))


def filled(template: Template, results: Mapping[str, Tensor]) -> Any:
    """The template with results in their places."""
    if template is None or isinstance(template, str):
        return None if template is None else results[template]
    if isinstance(template, dict):
        return {name: filled(part, results) for name, part in template.items()}
    return type(template)(filled(part, results) for part in template)


def parameters_of(model: nn.Module) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Defaults by name, and the Boolean parameters, of a model's forward.

    Raises:
        ValueError: if the model has no forward of its own, or none that takes images and a mask ratio.
    """
    kind = type(model)
    if kind.forward is nn.Module.forward:
        raise ValueError(f"accelerate: {kind.__name__} has no forward whose arguments and results could be kept")
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    fixed = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
    open_ended = [p.name for p in parameters[1:] if p.default is p.empty]
    if not fixed or not parameters or open_ended or MASK_RATIO not in {p.name for p in parameters}:
        raise ValueError(
            f"accelerate: {kind.__name__}.forward must take images, {MASK_RATIO} and others with defaults, "
            f"got ({', '.join(map(str, parameters))})"
        )
    return {p.name: p.default for p in parameters}, tuple(p.name for p in parameters if isinstance(p.default, bool))


def sample_images(model: nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
    """Two images of noise, from a generator of its own, where and as the model takes them."""
    weight = model.get_submodule("patch_embed.proj").get_parameter("weight")
    if weight.is_meta:
        raise ValueError("accelerate: the model's tensors are on the meta device; load its weights first")
    noise = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, weight.dtype)


def observe(model: nn.Module, images: Tensor, defaults: Mapping[str, Any], flags: tuple[str, ...]) -> Observed:
    """What the model's forward returns for every setting of its flags; random numbers are left as they were.

    The model is called as a whole, which a sharded one needs. What hooks on it make of the results is left out.
    """
    ratios = {MASK_RATIO: _MASK_RATIO, PREDICTION_RATIO: _PREDICTION_RATIO}
    ratios = {name: ratio for name, ratio in ratios.items() if name in defaults}
    seen: Observed = {}
    forward, replaced = model.forward, model.__dict__.get("forward")
    for setting in product((False, True), repeat=len(flags)):

        def recorded(*args: Any, _setting: tuple[bool, ...] = setting, **kwargs: Any) -> Any:
            seen[_setting] = forward(*args, **kwargs)
            return seen[_setting]

        model.forward = recorded
        try:
            with torch.no_grad(), same_random_numbers(images):
                model(images, **ratios, **dict(zip(flags, setting, strict=True)))
        finally:
            del model.forward
            if replaced is not None:
                model.forward = replaced
    # Behind a forward pass FSDP2's root waits for the backward pass with its parameters gathered: an optimizer that is
    # made now would be given these, and its steps would be lost.
    for module in model.modules():
        reshard: Any = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()
    return seen


def same_random_numbers(images: Tensor) -> AbstractContextManager[Any]:
    """Leave the random numbers of the images' device and of the CPU as they were."""
    return torch.random.fork_rng([images.device] if images.is_cuda else [])


def agree(observed: Observed, results: Mapping[str, Tensor]) -> Observed:
    """Which of our results stands where in what the model returned.

    Raises:
        ValueError: naming an output that none of our results equals.
    """
    tolerance = _tolerance(results["prediction"])
    return {setting: _template(output, results, tolerance, "its result") for setting, output in observed.items()}


def _template(output: Any, results: Mapping[str, Tensor], tolerance: float, where: str) -> Template:
    if output is None:
        return None
    if type(output) is dict:
        return {name: _template(part, results, tolerance, f"{where}[{name!r}]") for name, part in output.items()}
    if type(output) in (tuple, list):
        parts = (_template(part, results, tolerance, f"{where}[{index}]") for index, part in enumerate(output))
        return type(output)(parts)
    if not isinstance(output, Tensor):
        raise ValueError(f"accelerate: {where} is of {type(output)}; tensors, tuples, lists and dicts are served")
    alike = {n: r for n, r in results.items() if (r.shape, r.dtype) == (output.shape, output.dtype)}
    distances = {name: _distance(result, output) for name, result in alike.items()}
    closest = min(distances, key=distances.__getitem__, default=None)
    if closest is not None and distances[closest] <= tolerance:
        return closest
    found = f"{closest} comes closest, {distances[closest]:.1e} away" if closest else "nothing has this shape and dtype"
    raise ValueError(
        f"accelerate: {where}, {output.dtype} {tuple(output.shape)}, is not what would be computed in its place "
        f"({found}, {tolerance:.0e} is allowed): the model computes otherwise than the releases do"
    )


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square of the difference, relative to theirs; infinite where either is not finite."""
    difference, size = (tensor.detach().double().square().mean().sqrt() for tensor in (ours - theirs, theirs))
    return float((difference / size.clamp(min=1e-30)).nan_to_num(nan=torch.inf))


def _tolerance(prediction: Tensor) -> float:
    if prediction.dtype.itemsize == 2 or torch.get_float32_matmul_precision() != "highest":
        return _TOLERANCE_16_BIT
    return _TOLERANCE_CUDA if prediction.is_cuda else _TOLERANCE
