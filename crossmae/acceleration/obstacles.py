"""What in a model of somebody else's would not be honoured: fused operations read its layers and do not call them."""

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

# Submodules by path: the class whose arithmetic they must have, or None for a mere holder of others.
Roles = Mapping[str, type[nn.Module] | None]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# Wrappers that do nothing but call the module they hold: activation checkpointing's, FSDP1's, torch.compile's.
WRAPPED = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod")


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


def obstacles(module: nn.Module, roles: Roles, prefix: str = "", called: tuple[str, ...] = ()) -> Iterator[str]:
    """Every reason why fused operations cannot stand in for the submodules of ``module``.

    Children named in ``called`` are called as ever, and are not looked at.
    """
    seen = set()
    for path, child in _below(module, called):
        name = prefix + path
        seen.add(path)
        if has_hooks(child):
            yield f"{name} has a hook, which would not be called (those of the model and of its blocks are)"
        if "forward" in child.__dict__:
            yield f"{name} has a forward of its own"
        if path not in roles:
            yield from _more_than_nothing(name, child)
        else:
            kind = roles[path]
            if kind is not None and type(child).forward is not kind.forward:
                yield f"{name} must compute as nn.{kind.__name__} does, got {type(child).__name__}"
            elif kind is None and child._parameters:
                yield f"{name} has a parameter that is not known, {next(iter(child._parameters))}"
    for path in roles:
        if path not in seen:
            yield f"{prefix}{path} is missing"


def _below(module: nn.Module, called: tuple[str, ...] = (), prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Submodules by path. Parametrizations compute a layer's weight whenever it is read, so they are honoured."""
    for name, child in module._modules.items():
        if child is not None and name not in called and name != "parametrizations":
            yield prefix + name, child
            yield from _below(child, (), f"{prefix}{name}.")


def _more_than_nothing(name: str, module: nn.Module) -> Iterator[str]:
    """Why a module without a role is more than a place in which nothing happens."""
    if isinstance(module, nn.Identity):
        return
    # Dropout has p, and stochastic depth, wherever it comes from, drop_prob.
    rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "drop_prob", None)
    if rate:
        yield f"{name} drops with probability {rate}, only 0 is served"
    elif isinstance(module, nn.GELU) and module.approximate != "none":
        yield f"{name} must be exact GELU, got approximate={module.approximate!r}"
    elif rate is None and not isinstance(module, nn.GELU):
        yield f"{name} ({type(module).__name__}) is not known"
