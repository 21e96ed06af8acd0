"""Observe a model's call: results, block outputs and gradients; the model is left unchanged."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._pytree import tree_leaves

from crossmae.acceleration.contract import MASK_RATIO, PREDICTION_RATIO, Setting
from crossmae.acceleration.structure import BLOCKS, blocks_of

# The numbers of visible, unpredicted and predicted patches differ, and so do truncated and rounded products.
_RATIOS = {True: (0.7, 0.3), False: (0.5, 0.25)}


@dataclass
class Observation:
    """One call of a model, or one step with the gradients of the results' weighted sum, None where there are none."""

    output: Any = None
    blocks: list[tuple[str, Tensor]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)


def require_values(model: nn.Module) -> None:
    """Raise ValueError if some of a model's parameters are mere shapes."""
    for parameter in _parameters(model):
        if parameter.is_meta or isinstance(parameter, FakeTensor):
            what = "on the meta device" if parameter.is_meta else "fake"
            raise ValueError(f"accelerate: the model's tensors are {what}; load its weights first")


def noise_images(token: Any, channels: int, size: tuple[int, int], patch: int) -> Tensor:
    """Two images of noise with the device and dtype of a class or mask token, from a separate generator.

    Brightness and contrast of their patches span four orders of magnitude, like dark and bright pictures, to expose
    formulas that differ only for some of them.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64)

    grid = (size[0] // patch, size[1] // patch)
    contrast = 10 ** (4 * torch.rand(2, 1, *grid, generator=generator, device="cpu", dtype=torch.float64) - 3)
    brightness = normal(2, 1, *grid)
    images = normal(2, channels, *size)
    patches = [t.repeat_interleave(patch, 2).repeat_interleave(patch, 3) for t in (contrast, brightness)]
    return (images * patches[0] + patches[1]).to(token.device, token.dtype)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 gathers the model's parameters when the model is called."""
    return any(hasattr(module, "set_reshard_after_forward") for module in model.modules())


def _parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """All parameters. Some libraries' own ``parameters`` warns."""
    return (
        parameter for module in model.modules() for parameter in module._parameters.values() if parameter is not None
    )


def has_gradients(model: nn.Module) -> bool:
    """Whether a call may record its graph: a sharded model would then wait for a backward pass, and PyTorch refuses to
    save what was made in inference mode."""
    return not is_sharded(model) and not any(parameter.is_inference() for parameter in _parameters(model))


def observe(
    model: nn.Module, images: Tensor, defaults: Mapping[str, Any], flags: tuple[str, ...], exactly: bool
) -> dict[Setting, Observation]:
    """Observe the model in training and evaluation, for all values of its Boolean arguments, with fixed random numbers.

    Calls the whole model, as sharding needs; changes that hooks on it make to its results are left out.

    Args:
        model: with its own forward or with ours.
        images: from ``sample_images``.
        defaults: of its parameters.
        flags: Boolean parameters.
        exactly: whether to disable autocast everywhere, so that small differences show.
    """
    settings = product((True, False), *[(False, True)] * len(flags))
    return {
        setting: _observe(model, images, _arguments(defaults, flags, setting), setting, exactly) for setting in settings
    }


def observe_step(model: nn.Module, images: Tensor, defaults: Mapping[str, Any], flags: tuple[str, ...]) -> Observation:
    """Observe one training step, with the gradients of all parameters, which are not left in ``grad``."""
    setting = (True, *[False] * len(flags))
    return _observe(model, images, _arguments(defaults, flags, setting), setting, exactly=True, step=True)


def observe_part(module: nn.Module, inputs: tuple[Any, ...]) -> dict[Setting, Observation]:
    """Observe one module in training and evaluation, with fixed random numbers: its output and all gradients."""
    seen: dict[Setting, Observation] = {}
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    for training in (True, False):
        with (
            _left_as_it_was(module, tensors[0]),
            torch.inference_mode(False),
            torch.set_grad_enabled(has_gradients(module)),
            torch.autocast(tensors[0].device.type, enabled=False),
        ):
            module.train(training)
            output = module.forward(*inputs)
            seen[training,] = Observation(output=output, gradients=_gradients(module, output, tensors))
    return seen


def _arguments(defaults: Mapping[str, Any], flags: tuple[str, ...], setting: Setting) -> dict[str, Any]:
    ratios = dict(zip((MASK_RATIO, PREDICTION_RATIO), _RATIOS[setting[0]], strict=True))
    return {n: r for n, r in ratios.items() if n in defaults} | dict(zip(flags, setting[1:], strict=True))


def _observe(
    model: nn.Module, images: Tensor, arguments: Mapping[str, Any], setting: Setting, exactly: bool, step: bool = False
) -> Observation:
    seen = Observation()
    forward, replaced = model.forward, model.__dict__.get("forward")
    running = True

    def recorded(*args: Any, **kwargs: Any) -> Any:
        seen.output = forward(*args, **kwargs)
        return seen.output

    def called(path: str) -> Any:
        return lambda *_: seen.calls.update([path])

    def returned(path: str) -> Any:
        return lambda _, __, output: seen.blocks.append((path, output.detach())) if running else None

    with ExitStack() as stack:
        stack.enter_context(_left_as_it_was(model, images))
        stack.enter_context(torch.inference_mode(False))
        # The graph shows what is detached.
        stack.enter_context(torch.set_grad_enabled(has_gradients(model)))
        stack.enter_context(torch.autocast(images.device.type, enabled=False))
        if exactly:
            stack.enter_context(_no_autocast())
        for blocks in BLOCKS:
            for index, block in enumerate(blocks_of(model, blocks)):
                path = f"{blocks}.{index}"
                stack.callback(block.register_forward_pre_hook(called(path)).remove)
                stack.callback(block.register_forward_hook(returned(path)).remove)
        model.train(setting[0])
        model.forward = recorded
        try:
            model(images, **arguments)
        finally:
            del model.forward
            if replaced is not None:
                model.forward = replaced
        running = False
        if step:
            seen.gradients = _gradients(model, seen.output)
    return seen


def _gradients(model: nn.Module, output: Any, inputs: Sequence[Tensor] = ()) -> dict[str, Tensor | None]:
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters |= {f"input {index}": x for index, x in enumerate(inputs) if x.requires_grad}  # type: ignore[misc]
    if not leaves or not parameters:
        return {}
    # Weights with a slope, so that the elements of a result are distinguished.
    total = sum((leaf * torch.linspace(1, 2, leaf.numel(), device=leaf.device).view_as(leaf)).sum() for leaf in leaves)
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)  # type: ignore[arg-type]
    return dict(zip(parameters, gradients, strict=True))


@contextmanager
def _left_as_it_was(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Restore random states, modes, shards, and buffers, which a call may update."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        yield
    for module, training in modes.items():
        module.training = training
        # After a forward pass FSDP2's root keeps its parameters gathered for the backward pass: an optimizer created
        # now would get these, and its steps would be lost.
        reshard: Any = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Disable autocast that a forward enables itself."""
    with mock.patch.multiple(torch.autocast, __enter__=lambda self: self, __exit__=lambda *_: None):
        yield
