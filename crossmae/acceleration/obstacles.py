"""What is not supported in another library's model: fused operations read its layers but do not call them."""

from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

# Submodules by path: the class whose arithmetic they must have, or None for a mere container.
Roles = Mapping[str, type[nn.Module] | None]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# The origin of Hugging Face's hooks, which stay on a model once it has recorded outputs.
_RECORDER = "transformers.utils.output_capturing"

# Wrappers that only call the module they hold: activation checkpointing's, FSDP1's, torch.compile's.
WRAPPED = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod")

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NOTHING = (nn.Identity.forward, nn.GELU.forward, *(kind.forward for kind in _DROPOUTS))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module without its wrappers."""
    for name in WRAPPED:
        inner = module._modules.get(name)
        if inner is not None:
            return unwrapped(inner)
    return module


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module would run more than its forward."""
    return any(module.__dict__[name] for name in _HOOKS)


def listed(problems: list[str]) -> str:
    """The first five problems, and the number of others."""
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")


def below(module: nn.Module, called: tuple[str, ...] = (), prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Submodules by path, except those within children that are ``called``.

    Parametrizations are supported, as they compute a layer's weight whenever it is read.
    """
    for name, child in module._modules.items():
        if child is not None and name != "parametrizations":
            yield prefix + name, child
            if prefix + name not in called:
                yield from below(child, called, f"{prefix}{name}.")


def has_roles(module: nn.Module, roles: Roles) -> bool:
    """Whether the submodules exist, whatever they compute; their parents may be wrapped."""
    return all(_find(module, path.split(".")) is not None for path in roles)


def _find(module: nn.Module, names: list[str]) -> nn.Module | None:
    for name in names:
        child = module._modules.get(name)
        if child is None:
            return None
        module = unwrapped(child)
    return module


def obstacles(
    module: nn.Module,
    roles: Roles,
    known: Mapping[str, Any],
    prefix: str = "",
    called: tuple[str, ...] = (),
    tables: tuple[str, ...] = (),
) -> Iterator[str]:
    """Every reason why fused operations cannot stand in for the submodules of ``module``.

    Args:
        module: a block, or a model.
        roles: what its submodules must be.
        known: forwards by path, at the time of acceleration, of containers and of submodules that were verified to
            compute the right thing.
        prefix: names the module in messages, before a path.
        called: paths of submodules that are called as before, or not at all.
        tables: paths of parameters that submodules hold for ``module``, such as tokens and positions.
    """
    seen = set()
    for path, child in below(module, called):
        name = prefix + path
        seen.add(path)
        if hooks := _hooks_of(child):
            yield f"{name} {hooks}"
        if "forward" in child.__dict__ or type(child).__call__ is not nn.Module.__call__:
            yield f"{name} has a forward of its own"
        elif path in called:
            continue
        elif path not in roles:
            yield from _more_than_nothing(name, child, known.get(path))
        else:
            kind, forward = roles[path], type(child).forward
            if kind is not None and forward is not kind.forward and forward is not known.get(path):
                got = f"{type(child).__module__}.{type(child).__qualname__}"
                yield f"{name} must compute like nn.{kind.__name__}, got {got}"
            elif kind is None and (unknown := [own for own in child._parameters if f"{path}.{own}" not in tables]):
                yield f"{name} has an unknown parameter, {unknown[0]}"
            elif kind is None and forward is not known.get(path, forward):
                yield f"{name} was replaced by one with another forward, {type(child).__qualname__}"
            elif kind is None:
                yield from _odd_attention(name, child)
            elif kind is nn.Conv2d:
                yield from _more_than_patches(name, child)
    for path in roles:
        if path not in seen:
            yield f"{prefix}{path} is missing"


def forwards(module: nn.Module, called: tuple[str, ...] = ()) -> dict[str, Any]:
    """Classes' forwards by path, for ``known``."""
    return {path: type(child).forward for path, child in below(module, called)}


def _hooks_of(module: nn.Module) -> str:
    """Why the module's hooks are not supported; empty if they are."""
    hooks = [hook for name in _HOOKS for hook in module.__dict__[name].values()]
    # Hugging Face's own hook records attention weights or nothing; blocks refuse requests for weights.
    hooks = [hook for hook in hooks if getattr(hook, "__module__", None) != _RECORDER]
    if not hooks:
        return ""
    if hasattr(module, "set_reshard_after_forward"):
        return "is sharded on its own; shard only the model and its blocks"
    kinds = sorted({getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks})
    return f"has a hook ({', '.join(kinds)}), which would not run (hooks on the model and its blocks do)"


def _rate(value: Any) -> float | None:
    """A rate of dropout, which may be a tensor: schedules are often a ``torch.linspace``. None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, Real) else None


def _more_than_nothing(name: str, module: nn.Module, known: Any) -> Iterator[str]:
    """Why a module without a role does more than nothing; ``known`` is a forward that is known to be harmless."""
    # Every library's stochastic depth has drop_prob or p.
    rate = _rate(getattr(module, "drop_prob", getattr(module, "p", None)))
    if rate:
        yield f"{name} drops with probability {rate:g}; only 0 is supported"
    elif isinstance(module, nn.GELU) and module.approximate != "none":
        yield f"{name} must be exact GELU, got approximate={module.approximate!r}"
    elif type(module).forward not in (*_NOTHING, known) and not (rate == 0 and not isinstance(module, _DropoutNd)):
        yield f"{name} ({type(module).__name__}) is unknown"


def _more_than_patches(name: str, convolution: Any) -> Iterator[str]:
    layout = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    if layout != (convolution.kernel_size, (0, 0), (1, 1), 1):
        yield f"{name} must take adjacent patches, got stride, padding, dilation, groups {layout}"


def _odd_attention(name: str, attention: nn.Module) -> Iterator[str]:
    """Settings in an attention's attributes that fused attention does not support."""
    for key in ("attn_drop", "attention_dropout"):
        if rate := _rate(getattr(attention, key, None)):
            yield f"{name}.{key} drops with probability {rate:g}; only 0 is supported"
    if getattr(getattr(attention, "config", None), "output_attentions", False):
        yield f"{name} must return no weights, got config.output_attentions=True"
    # Scores are always scaled by 1 / sqrt(head width), so a module must not say otherwise.
    for key, heads_key, proj_key in (("scale", "num_heads", "proj"), ("scaling", "num_attention_heads", "o_proj")):
        scale, heads, proj = (getattr(attention, each, None) for each in (key, heads_key, proj_key))
        if isinstance(scale, float) and isinstance(heads, int) and isinstance(proj, nn.Linear):
            expected = (proj.in_features / heads) ** -0.5
            if abs(scale / expected - 1) > 1e-6:
                yield f"{name}.{key} must be {expected:.6g}, got {scale:.6g}"


def mixing_obstacles(name: str, norms: list[Any]) -> Iterator[str]:
    """Why the norms of the decoder blocks' mixes, found under ``name``, cannot be applied together."""
    if any(norm.weight is None or norm.bias is None for norm in norms):
        yield f"{name} must all have a weight and a bias"
    if len({norm.eps for norm in norms}) > 1:
        yield f"{name} must have the same eps, got {sorted({norm.eps for norm in norms})}"
