"""What every PyTorch operator of this package needs beside its schema, its fake and what it saves.

An operator runs its launcher on CPU and CUDA tensors. The launcher's module, which needs Triton, is imported when the
operator first runs. Operators are defined through ``torch.library.Library``, not ``torch.library.custom_op``, which
wraps every call once more to look for aliases that cannot be here. Who serves a call was chosen before.
"""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from crossmae_kernels.runtime.flops import flop_formula

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(
    schema: str, launcher: str, fake: Callable[..., Any], flops: Callable[..., int] | None
) -> Callable[..., Any]:
    """Define an operator.

    Args:
        schema: name, arguments and results; the first argument is a tensor or a list of tensors.
        launcher: "folder.module:function", called with the operator's arguments. Autocast, which reaches into
            implementations, is off in it. Where it returns None, the operator returns an empty tensor: schemas have no
            optional results.
        fake: the same for tensors without data, None included.
        flops: what it multiplies, from the shapes of arguments and results (``runtime.flops``); None for nothing.
    """
    name = schema.partition("(")[0]
    module_name, _, function_name = launcher.partition(":")
    module: ModuleType | None = None
    _library.define(schema)

    def launch_on(device_type: str) -> Callable[..., Any]:
        def launch(*arguments: Any) -> Any:
            nonlocal module
            if module is None:
                module = importlib.import_module(f"{NAMESPACE}.{module_name}")
            function = getattr(module, function_name)
            if not torch.is_autocast_enabled(device_type):
                return _without_none(function(*arguments), arguments)
            with torch.autocast(device_type, enabled=False):
                return _without_none(function(*arguments), arguments)

        return launch

    def fake_call(*arguments: Any) -> Any:
        return _without_none(fake(*arguments), arguments)

    for device_type in ("cpu", "cuda"):
        _library.impl(name, launch_on(device_type), device_type.upper())
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake_call, lib=_library)
    packet = getattr(torch.ops.crossmae_kernels, name)
    if flops is not None:
        flop_formula(packet)(flops)
    return packet.default


def differentiable(
    op: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Sequence[Any]],
    inputs: int,
    results: int = 1,
) -> None:
    """Give an operator its derivative.

    Args:
        op: the operator.
        save: called with ``ctx``, the arguments and the results, keeps what ``backward`` needs.
        backward: called with ``ctx``, the output mask and the upstream gradients, returns the gradients of the inputs,
            of a list's tensors in one. The mask says for each input whether its gradient is asked for, and for a list
            whether any is. What nobody asked for may be anything and is dropped.
        inputs: how many arguments, the first ones, have a gradient.
        results: how many results, the first ones, have an upstream gradient.
    """
    assert isinstance(op, OpOverload)
    others = (None,) * (len(op._schema.arguments) - inputs)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(*output[results:])
        save(ctx, inputs, output)

    def autograd(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[:inputs]
        output_mask = [any(need) if isinstance(need, list) else need for need in needs]
        found: Sequence[Any] = (None,) * inputs
        if any(output_mask) and any(gradient is not None for gradient in upstream[:results]):
            found = backward(ctx, output_mask, *upstream[:results])
        return (*map(_asked_for, found, needs), *others)

    torch.library.register_autograd(op._name, autograd, setup_context=setup_context, lib=_library)


def not_differentiable(op: Callable[..., Any], why: str) -> None:
    """Refuse an operator's derivative, which would else be silently missing: of a backward pass, the second one."""
    assert isinstance(op, OpOverload)

    def refuse(ctx: Any, *upstream: Tensor) -> None:
        raise NotImplementedError(why)

    torch.library.register_autograd(op._name, refuse, lib=_library)


def need_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for the gradient of any of these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _without_none(results: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(results, Tensor):
        return results
    first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
    return tuple(first.new_empty(0) if result is None else result for result in results)


def _asked_for(gradient: Tensor | None, need: Any) -> Any:
    """The gradient where needed; of a list, those that are."""
    if not isinstance(need, list):
        return gradient if need else None
    each: Sequence[Tensor | None] = [None] * len(need) if gradient is None else gradient.unbind()
    return [one if needed else None for one, needed in zip(each, need, strict=True)]
