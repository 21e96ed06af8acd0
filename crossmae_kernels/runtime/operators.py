"""The common machinery of this package's PyTorch operators, beside their schemas, fakes and saved tensors.

An operator runs its launcher on CPU and CUDA tensors. The launcher's module, which needs Triton, is imported when the
operator first runs. Operators are defined by ``torch.library.Library``, not ``torch.library.custom_op``, which adds
another wrapper to every call, to look for aliases that cannot occur here. The implementation is chosen before the call.

Through PyTorch's dispatcher, a call with gradients takes 33 us of Python, a third of attention's. If nothing observes
the call (no compiler, mode, transform, profiler or tensor subclass), ``Operator`` calls the launcher itself, in half
the time.
"""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from crossmae_kernels.runtime import interpreter
from crossmae_kernels.runtime.device import interpreted
from crossmae_kernels.runtime.flops import flop_formula

NAMESPACE = "crossmae_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_NONE = (0,)  # the shape of the tensor that represents None
_PLAIN = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str, tuple, torch.dtype, torch.Size}


class Operator:
    """An operator of this package, called with all arguments of its schema in order.

    Args:
        schema: name, arguments and results; the first argument is a tensor or a list of tensors.
        launcher: "folder.module:function", called with the operator's arguments, with autocast off. If it returns
            None, PyTorch's dispatcher gets an empty tensor, as schemas have no optional results; ``made`` tells them
            apart.
        fake: the same for tensors without data, including None.
        flops: its FLOPs, from the shapes of arguments and results (``runtime.flops``); None if it has no products.
    """

    def __init__(self, schema: str, launcher: str, fake: Callable[..., Any], flops: Callable[..., int] | None) -> None:
        name = schema.partition("(")[0]
        self._module, _, self._function = launcher.partition(":")
        self._launchers: ModuleType | None = None
        self._derivative: type[torch.autograd.Function] | None = None
        self._results: int | None = None

        def fake_call(*arguments: Any) -> Any:
            results = fake(*arguments)
            return results if isinstance(results, Tensor) else _without_none(results, arguments)

        _library.define(schema)
        for device in ("CPU", "CUDA"):
            _library.impl(name, self._serve, device)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake_call, lib=_library)
        packet = getattr(torch.ops.crossmae_kernels, name)
        if flops is not None:
            flop_formula(packet)(flops)
        self._dispatched: OpOverload = packet.default

    def __call__(self, *arguments: Any) -> Any:
        """The differentiable results, or all if none is; one tensor or a tuple of them."""
        if traced(arguments) or torch.autograd.profiler._is_profiler_enabled:
            return self._differentiable(self._dispatched(*arguments))
        if torch.is_grad_enabled():
            if self._derivative is None:
                return self._differentiable(self._dispatched(*arguments))
            several = isinstance(arguments[0], list)
            # A Function finds tensors only among its arguments, not in lists.
            flat = (len(arguments[0]), *arguments[0], *arguments[1:]) if several else arguments
            for argument in flat:
                if isinstance(argument, Tensor) and argument.requires_grad:
                    return self._derivative.apply(*flat)
        return self._differentiable(self._launch(*arguments))

    def _differentiable(self, results: Any) -> Any:
        if self._results is None or isinstance(results, Tensor):
            return results
        return results[0] if self._results == 1 else results[: self._results]

    def _serve(self, *arguments: Any) -> Any:
        """The implementation that the dispatcher calls."""
        results = self._launch(*arguments)
        return results if isinstance(results, Tensor) else _without_none(results, arguments)

    def _launch(self, *arguments: Any) -> Any:
        if self._launchers is None:
            if interpreted():
                interpreter.teach()
            self._launchers = importlib.import_module(f"{NAMESPACE}.{self._module}")
        function = getattr(self._launchers, self._function)
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        device = first.device.type
        if not torch.is_autocast_enabled(device):
            return function(*arguments)
        # 0.5 us; torch.autocast takes 3.7.
        torch.set_autocast_enabled(device, False)
        try:
            return function(*arguments)
        finally:
            torch.set_autocast_enabled(device, True)

    def differentiable(
        self,
        save: Callable[[Any, tuple[Any, ...], Any], None],
        backward: Callable[..., Sequence[Any]],
        inputs: int,
        results: int = 1,
    ) -> None:
        """Give the operator its derivative.

        Args:
            save: called with ``ctx``, the arguments and the results; saves what ``backward`` needs.
            backward: called with ``ctx``, the output mask and the upstream gradients; returns the inputs' gradients,
                those of a list stacked or as a list. The mask says for each input whether its gradient is needed, and
                for a list whether any is. Gradients that are not needed are dropped, whatever their value. Autograd
                casts a gradient whose dtype differs from its input's.
            inputs: the number of leading arguments that have a gradient.
            results: the number of leading results that have an upstream gradient.
        """
        others = (None,) * (len(self._dispatched._schema.arguments) - inputs)
        self._results = results

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[results:])
            save(ctx, inputs, output)

        def gradients(ctx: Any, needs: Sequence[Any], upstream: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
            output_mask = [any(need) if isinstance(need, list) else need for need in needs]
            found: Sequence[Any] = (None,) * inputs
            if any(output_mask) and any(gradient is not None for gradient in upstream[:results]):
                found = backward(ctx, output_mask, *upstream[:results])
            return (*map(_asked_for, found, needs), *others)

        def autograd(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
            return gradients(ctx, ctx.needs_input_grad[:inputs], upstream)

        torch.library.register_autograd(self._dispatched._name, autograd, setup_context=setup_context, lib=_library)

        def forward(ctx: Any, *arguments: Any) -> Any:
            # Results needed only in the backward pass are saved but not returned, so autograd need not wrap them.
            output = self._launch(*arguments)
            ctx.set_materialize_grads(False)
            save(ctx, arguments, output)
            return self._differentiable(output)

        def forward_of_several(ctx: Any, count: int, *flat: Any) -> Any:
            ctx.count = count
            return forward(ctx, list(flat[:count]), *flat[count:])

        def autograd_of_several(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
            first, rest = 1 + ctx.count, ctx.needs_input_grad
            several, *each = gradients(ctx, [list(rest[1:first]), *rest[first : first + inputs - 1]], upstream)
            return None, *several, *each

        several = isinstance(self._dispatched._schema.arguments[0].type, torch.ListType)
        methods = {
            "forward": staticmethod(forward_of_several if several else forward),
            "backward": staticmethod(autograd_of_several if several else autograd),
        }
        self._derivative = type(self._dispatched._name, (torch.autograd.Function,), methods)

    def not_differentiable(self, why: str) -> None:
        """Refuse the derivative, which would otherwise be silently missing; for a backward operator, the second one."""

        def refuse(ctx: Any, *upstream: Tensor) -> None:
            raise NotImplementedError(why)

        torch.library.register_autograd(self._dispatched._name, refuse, lib=_library)


def made(result: Tensor | None) -> bool:
    """Whether a launcher returned this result, rather than None."""
    return result is not None and result.shape != _NONE


def unstacked(stack: Tensor | None, output_mask: Sequence[bool]) -> list[Tensor | None]:
    """Split gradients from one tensor, as an operator may not return views of it; None where the mask is false."""
    if stack is None or not any(output_mask):
        return [None] * len(output_mask)
    parts = iter(stack.unbind())
    return [next(parts) if asked else None for asked in output_mask]


def traced(arguments: tuple[Any, ...]) -> bool:
    """Whether a compiler, mode, transform or tensor subclass sees the operators that are called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or not _plain(arguments)
    )


def need_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will need the gradient of any of these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _plain(arguments: tuple[Any, ...]) -> bool:
    """Whether all tensors, including those in lists, are plain PyTorch tensors."""
    types = set(map(type, arguments))
    if list in types:
        types.remove(list)
        for argument in arguments:
            if isinstance(argument, list):
                types.update(map(type, argument))
    return types <= _PLAIN


def _without_none(results: Any, arguments: tuple[Any, ...]) -> Any:
    first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
    return tuple(first.new_empty(_NONE) if result is None else result for result in results)


def _asked_for(gradient: Tensor | list[Tensor] | None, need: Any) -> Any:
    """The gradient if it is needed; for a list, those that are."""
    if not isinstance(need, list):
        return gradient if need else None
    if gradient is None or not any(need):
        return [None] * len(need)
    return [one if needed else None for one, needed in zip(gradient, need, strict=True)]
