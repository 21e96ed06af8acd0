"""Choose a call's implementation: the Triton kernels or the PyTorch reference, and the form of the kernels.

Calls with ``impl="auto"`` use the process-wide default. It starts as the environment variable
``CROSSMAE_KERNELS_IMPL``, ``"auto"`` if unset, and ``default_implementation`` changes it.

An op may have several forms: one kernel, our own kernel for each matrix product, or cuBLAS's products. An analytic
rule chooses among them, or on a GPU a measurement (``runtime.tuning``). Tests and benchmarks select one by name. Other
ops have kernels alone; there the choice is between these and PyTorch's operators, forward and backward together.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from crossmae_kernels.environment import IMPLEMENTATION, Implementation, require_option
from crossmae_kernels.runtime.operators import need_gradient, traced
from crossmae_kernels.runtime.tuning import run_tuned, tunes_forms

# Precedes the reasons why a kernel cannot run a call.
REFUSAL = "cannot serve this call: "


_default = os.environ.get(IMPLEMENTATION, "auto")


def default() -> Implementation:
    """The process-wide default.

    Raises:
        ValueError: if the environment variable has another value.
    """
    require_option(IMPLEMENTATION, _default)
    return cast(Implementation, _default)


@contextmanager
def default_implementation(impl: Implementation) -> Iterator[None]:
    """Use ``impl`` for every call with ``impl="auto"``, in all threads, within the block.

    ``"triton"`` is then as explicit as in a call: it raises if a kernel cannot run the call.
    """
    global _default
    require_option(IMPLEMENTATION, impl, "default_implementation: impl")
    before, _default = _default, impl
    try:
        yield
    finally:
        _default = before


def choose(
    op: str, impl: Implementation, refusals: Sequence[str], worthwhile: bool = True, cpu: bool = False
) -> Literal["triton", "reference", "cpu"]:
    """Resolve ``impl`` for one call.

    ``refusals`` lists every reason why the kernel cannot run this call. ``auto`` takes the kernel if there are none and
    it is ``worthwhile``, else the op's ``cpu`` implementation if it has one for this call, else the reference;
    ``triton`` never falls back but raises ``RuntimeError`` with all reasons.
    """
    require_option(IMPLEMENTATION, impl, f"{op}: impl")
    if impl == "auto":
        impl = default()
    if impl == "triton" and refusals:
        raise RuntimeError(f"{op}: impl='triton' {REFUSAL}" + "; ".join(refusals))
    if impl == "auto":
        return "triton" if worthwhile and not refusals else "cpu" if cpu else "reference"
    return impl


_asked_for: dict[str, str] = {}


@contextmanager
def form_of(op: str, name: str) -> Iterator[None]:
    """Use the named form in every call of ``op``, in all threads, within the block."""
    before = _asked_for.get(op)
    _asked_for[op] = name
    try:
        yield
    finally:
        del _asked_for[op]
        if before is not None:
            _asked_for[op] = before


@dataclass(frozen=True)
class Forms:
    """The forms of an op. All take the same arguments, the first of which holds rows."""

    op: str
    by_name: Mapping[str, Callable[..., Any]]
    key: Callable[..., tuple[object, ...]]
    """The widths and dtypes that the best form may depend on, from the arguments. Built in every call on a GPU."""
    refusals: Mapping[str, Callable[..., Sequence[str]]]
    """Every reason why a form cannot run a call, from the arguments; forms without an entry always can."""

    def run(self, rule: str, *arguments: Any) -> Any:
        """Run the requested form, else the fastest if it has been measured, else the ``rule``'s.

        Raises:
            RuntimeError: if the requested form cannot run the call, with the reasons.
        """
        asked = _asked_for.get(self.op)
        if asked is not None:
            if reasons := self._reasons(asked, arguments):
                raise RuntimeError(f"{self.op}: form {asked!r} {REFUSAL}" + "; ".join(reasons))
            rule = asked
        elif tunes_forms(arguments[0]):
            return self._run_fastest(rule, arguments)
        return self.by_name[rule](*arguments)

    def _reasons(self, name: str, arguments: tuple[Any, ...]) -> Sequence[str]:
        if name not in self.by_name:
            return [f"there is no such form, only {', '.join(self.by_name)}"]
        return self.refusals[name](*arguments) if name in self.refusals else []

    def _run_fastest(self, rule: str, arguments: tuple[Any, ...]) -> Any:
        rows: Tensor = arguments[0]
        return run_tuned(
            self.op,
            self._key(arguments),
            rows.shape[0],
            rule,
            self._able,
            self._run_able,
            rows.device,
            "forms",
            (rule, *arguments),
            self._rehearse,
        )

    def _key(self, arguments: tuple[Any, ...]) -> tuple[object, ...]:
        return self.key(*arguments)

    def _rehearse(self, name: str, rule: str, *arguments: Any) -> object:
        """What is timed."""
        return self._run_able(name, rule, *arguments)

    def _able(self, rule: str, *arguments: Any) -> list[str]:
        """Names of the forms that can run the call."""
        return [name for name in self.by_name if not self._reasons(name, arguments)]

    def _run_able(self, name: str, rule: str, *arguments: Any) -> Any:
        # A key's fastest form may still refuse a call because of a matrix's alignment or number of rows.
        able = name == rule or not self._reasons(name, arguments)
        return self.by_name[name if able else rule](*arguments)


@dataclass(frozen=True)
class WholeForms(Forms):
    """Forms ``kernels``, the rule's, and ``pytorch`` of an op, each with a backward pass of its own, timed with it.

    Both must round and treat ids out of range alike: which of them runs is left to a measurement.
    """

    def serve(self, impl: Implementation, *arguments: Any) -> Any:
        """Run a call that the kernels can run: by them if ``impl`` or the default says so, if it is traced or empty."""
        if impl != "auto" or default() != "auto" or traced(arguments) or not arguments[0].numel():
            return self.by_name["kernels"](*arguments)
        return self.run("kernels", *arguments)

    def _key(self, arguments: tuple[Any, ...]) -> tuple[object, ...]:
        needs: tuple[int, ...] = ()
        if torch.is_grad_enabled():
            needs = tuple([n for n, one in enumerate(arguments) if isinstance(one, Tensor) and one.requires_grad])
        return *self.key(*arguments), _named(needs)

    def _rehearse(self, name: str, rule: str, *arguments: Any) -> object:
        """The call and, if any gradient is needed, its backward pass, apart from the caller's graph."""
        copies = [
            argument.detach().requires_grad_(_needs_gradient(argument)) if isinstance(argument, Tensor) else argument
            for argument in arguments
        ]
        leaves = [copy for copy in copies if _needs_gradient(copy)]
        # Hooks of the caller's, such as activation checkpointing's, must not see what is saved here.
        with torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged):
            out: Tensor = self._run_able(name, rule, *copies)
            return torch.autograd.grad(out, leaves, torch.ones_like(out)) if leaves else out


@functools.cache
def _named(needs: tuple[int, ...]) -> str | None:
    return f"gradients of {', '.join(map(str, needs))}" if needs else None


def _needs_gradient(argument: object) -> bool:
    return isinstance(argument, Tensor) and need_gradient(argument)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
