"""Find and replace the supported parts of other libraries' models, such as transformer blocks.

Such a model keeps its own forward, and so its arguments, masks, results and evaluation behaviour. Parts are found by
their submodules, and each replacement is compared with the part's own forward before it is kept.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from crossmae.acceleration.agreement import compare_outputs, compare_steps
from crossmae.acceleration.birder import BirderForward
from crossmae.acceleration.cross_decoder import CrossDecoderForward
from crossmae.acceleration.forward import BlockForward, CrossAttentionForward, ModuleForward, SelfAttentionForward
from crossmae.acceleration.layers import (
    BIRDER_CROSS_ATTENTION,
    BIRDER_SELF_ATTENTION,
    CROSS_ATTENTION,
    HUGGING_FACE_SELF_ATTENTION,
    SELF_ATTENTION,
    CrossAttentionLayers,
    SelfAttentionLayers,
)
from crossmae.acceleration.observation import is_sharded, observe_part
from crossmae.acceleration.obstacles import below, has_roles, listed
from crossmae.acceleration.structure import has_release_blocks

# The first of these whose layers a module has determines its kind.
_BLOCKS: tuple[SelfAttentionLayers | CrossAttentionLayers, ...] = (
    CrossAttentionLayers(attends_to_itself=True),
    CROSS_ATTENTION,
    BIRDER_CROSS_ATTENTION,
    SELF_ATTENTION,
    BIRDER_SELF_ATTENTION,
    HUGGING_FACE_SELF_ATTENTION,
)
_WHOLE: tuple[type[BirderForward] | type[CrossDecoderForward], ...] = (BirderForward, CrossDecoderForward)


def find_parts(model: nn.Module) -> list[ModuleForward]:
    """Create a forward for every known part, blocks first, without installing any."""
    blocks: list[ModuleForward] = []
    around: list[ModuleForward] = []
    for path, module in model.named_modules():
        if has_release_blocks(module):
            raise ValueError(f"accelerate: pass {type(model).__name__}.{path}, a model with a release's names")
        prefix = f"{path}." if path else ""
        around += [kind(module, prefix) for kind in _WHOLE if kind.recognises(module)]
        layers = _layers_of(module)
        if layers is not None:
            kind = SelfAttentionForward if isinstance(layers, SelfAttentionLayers) else CrossAttentionForward
            blocks.append(kind(module, prefix, layers, proven=_proven(module, layers)))
    return [*blocks, *around]


def accelerate_parts(model: nn.Module, parts: list[ModuleForward], restore: Callable[[nn.Module], object]) -> None:
    """Install the forwards in their modules, if they compute the same as the modules' own.

    Raises:
        ValueError: with nothing changed, naming what is not supported or the first result that differs.
    """
    name = type(model).__name__
    if is_sharded(model):
        raise ValueError(f"accelerate: {name} is already sharded; accelerate the model first, then call fully_shard")
    problems = [problem for part in parts for problem in (*_own_obstacles(part), *part.obstacles())]
    problems += _other_siblings(model, {id(part.module) for part in parts})
    if problems:
        raise ValueError(f"accelerate: {name} is not supported: {listed(problems)}")
    inputs = [part.sample() for part in parts]
    try:
        own = [observe_part(part.module, sample) for part, sample in zip(parts, inputs, strict=True)]
    except TypeError as error:
        raise ValueError(f"accelerate: {name} has a part that needs other arguments: {error}") from error
    for part in parts:
        part.module.forward = part  # type: ignore[assignment]
    try:
        for part, sample, theirs in zip(parts, inputs, own, strict=True):
            where = part.prefix.rstrip(".") or name
            for setting, ours in observe_part(part.module, sample).items():
                compare_outputs(theirs[setting].output, ours.output, where)
                compare_steps(theirs[setting], ours)
    except BaseException:
        restore(model)
        raise


def _layers_of(module: nn.Module) -> SelfAttentionLayers | CrossAttentionLayers | None:
    return next((layers for layers in _BLOCKS if has_roles(module, layers.roles)), None)


def _own_obstacles(part: ModuleForward) -> Iterator[str]:
    name = part.prefix.rstrip(".") or "the model"
    if "forward" in part.module.__dict__:
        yield f"{name} has a forward of its own"
    if isinstance(part, BlockForward):
        yield from (f"{name} has an unknown parameter, {own}" for own in part.module._parameters)
        attention, key = part.told_heads
        if not isinstance(getattr(part.layer(attention), key, None), int):
            yield f"{name}.{attention} has no {key}"


def _other_siblings(model: nn.Module, served: set[int]) -> list[str]:
    """Blocks unlike others of their class in the same list, such as those with experts instead of an MLP."""
    found = []
    for path, holder in model.named_modules():
        children = {name: child for name, child in holder._modules.items() if child is not None}
        kinds = {type(child) for child in children.values() if id(child) in served}
        for name, child in children.items():
            if type(child) in kinds and id(child) not in served:
                found.append(f"{path + '.' if path else ''}{name} does not have the layers of its neighbouring blocks")
    return found


def _proven(module: nn.Module, layers: SelfAttentionLayers | CrossAttentionLayers) -> dict[str, Any]:
    """Forwards, by path, of other libraries' layers that on noise compute a LayerNorm, exact GELU, or nothing."""
    roles = layers.roles
    return {
        path: type(child).forward
        for path, child in below(module)
        if not child._modules
        and (
            (path not in roles and not child._parameters and _is_activation(child)) or _is_norm(child, roles.get(path))
        )
    }


def _is_activation(module: nn.Module) -> bool:
    x = torch.linspace(-3, 3, 64).view(2, 4, 8)
    with torch.no_grad(), torch.random.fork_rng([]):
        try:
            y = module.forward(x)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
    return (
        isinstance(y, torch.Tensor)
        and y.shape == x.shape
        and any(torch.allclose(y, expected, rtol=1e-5, atol=1e-6) for expected in (x, nn.functional.gelu(x)))
    )


def _is_norm(module: nn.Module, kind: Any) -> bool:
    """Whether it computes a LayerNorm by another forward, like timm's."""
    if kind is not nn.LayerNorm or not isinstance(module, nn.LayerNorm) or {*module._parameters} != {"weight", "bias"}:
        return False
    x = torch.randn(3, module.normalized_shape[-1], generator=torch.Generator().manual_seed(0), device="cpu")
    x = x.to(module.weight.device, module.weight.dtype)
    with torch.no_grad():
        return torch.equal(module.forward(x), nn.LayerNorm.forward(module, x))
