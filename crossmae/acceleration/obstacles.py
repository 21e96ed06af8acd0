"""What in a model of somebody else's would not be honoured: fused operations read its layers and do not call them."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

# Submodules by path: the class whose arithmetic they must have, or None for a mere holder of others.
Roles = Mapping[str, type[nn.Module] | None]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# Wrappers that do nothing but call the module they hold: activation checkpointing's, FSDP1's, torch.compile's.
WRAPPED = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod")

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NOTHING = (nn.Identity.forward, nn.GELU.forward, *(kind.forward for kind in _DROPOUTS))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module within wrappers."""
    for name in WRAPPED:
        inner = module._modules.get(name)
        if inner is not None:
            return unwrapped(inner)
    return module


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module would run more than its forward."""
    return any(module.__dict__[name] for name in _HOOKS)


def listed(problems: list[str]) -> str:
    """The first five problems, and how many more there are."""
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")


def below(module: nn.Module, called: tuple[str, ...] = (), prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Submodules by path, but for those within children that are ``called``.

    Parametrizations compute a layer's weight whenever it is read, so they are honoured.
    """
    for name, child in module._modules.items():
        if child is not None and name != "parametrizations":
            yield prefix + name, child
            if name not in called:
                yield from below(child, (), f"{prefix}{name}.")


def obstacles(
    module: nn.Module, roles: Roles, holders: Mapping[str, Any], prefix: str = "", called: tuple[str, ...] = ()
) -> Iterator[str]:
    """Every reason why fused operations cannot stand in for the submodules of ``module``.

    Args:
        module: a block, or a model.
        roles: what its submodules must be.
        holders: forwards, by path, of those that only hold others, as they were when it was accelerated.
        prefix: names the module in front of a path.
        called: lists of children that are called as ever.
    """
    seen = set()
    for path, child in below(module, called):
        name = prefix + path
        seen.add(path)
        if has_hooks(child):
            yield f"{name} {_hooks_of(child)}"
        if "forward" in child.__dict__ or type(child).__call__ is not nn.Module.__call__:
            yield f"{name} has a forward of its own"
        elif path in called:
            continue
        elif path not in roles:
            yield from _more_than_nothing(name, child)
        else:
            kind, forward = roles[path], type(child).forward
            if kind is not None and forward is not kind.forward:
                got = f"{type(child).__module__}.{type(child).__qualname__}"
                yield f"{name} must compute as nn.{kind.__name__} does, got {got}"
            elif kind is None and child._parameters:
                yield f"{name} has a parameter that is not known, {next(iter(child._parameters))}"
            elif kind is None and forward is not holders.get(path, forward):
                yield f"{name} was replaced by one with another forward, {type(child).__qualname__}"
            elif kind is nn.Conv2d:
                yield from _more_than_patches(name, child)
    for path in roles:
        if path not in seen:
            yield f"{prefix}{path} is missing"
    yield from _odd_scales(module, prefix)


def forwards(module: nn.Module, called: tuple[str, ...] = ()) -> dict[str, Any]:
    """Classes' forwards by path, for ``holders``."""
    return {path: type(child).forward for path, child in below(module, called)}


def _hooks_of(module: nn.Module) -> str:
    if hasattr(module, "set_reshard_after_forward"):
        return "is sharded by itself; shard the model and its blocks only"
    hooks = [hook for name in _HOOKS for hook in module.__dict__[name].values()]
    kinds = sorted({getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks})
    return f"has a hook ({', '.join(kinds)}), which would not be called (those of the model and of its blocks are)"


def _more_than_nothing(name: str, module: nn.Module) -> Iterator[str]:
    """Why a module without a role is more than a place in which nothing happens."""
    # Stochastic depth, wherever it comes from, has drop_prob.
    rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "drop_prob", None)
    if rate:
        yield f"{name} drops with probability {rate}, only 0 is served"
    elif isinstance(module, nn.GELU) and module.approximate != "none":
        yield f"{name} must be exact GELU, got approximate={module.approximate!r}"
    elif type(module).forward not in _NOTHING and not (rate == 0 and not isinstance(module, _DropoutNd)):
        yield f"{name} ({type(module).__name__}) is not known"


def _more_than_patches(name: str, convolution: Any) -> Iterator[str]:
    layout = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    if layout != (convolution.kernel_size, (0, 0), (1, 1), 1):
        yield f"{name} must take patches side by side, got stride, padding, dilation, groups {layout}"


def _odd_scales(block: nn.Module, prefix: str) -> Iterator[str]:
    """Scores are divided by the root of a head's width, whatever a module may say."""
    for path, attention in block._modules.items():
        scale, heads, proj = (getattr(attention, key, None) for key in ("scale", "num_heads", "proj"))
        if isinstance(scale, float) and isinstance(heads, int) and isinstance(proj, nn.Linear):
            expected = (proj.in_features / heads) ** -0.5
            if abs(scale / expected - 1) > 1e-6:
                yield f"{prefix}{path}.scale must be {expected:.6g}, got {scale:.6g}"
