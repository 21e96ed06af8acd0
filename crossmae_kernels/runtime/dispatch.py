"""Who serves a call: the Triton kernels or the PyTorch reference, and which form of the kernels.

The process-wide default answers calls with ``impl="auto"``. It starts as the environment variable
``CROSSMAE_KERNELS_IMPL`` says, ``"auto"`` unless set, and changes within ``default_implementation``.

An op may have several forms: one kernel, kernels of ours for each matrix product, or a library's products. It chooses
by an analytic rule, or on a GPU by measurement (``runtime.tuning``). Tests and measurements ask for one by name.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor

from crossmae_kernels.environment import IMPLEMENTATION, Implementation, require_option
from crossmae_kernels.runtime.tuning import run_tuned, tunes_forms

# In front of the reasons why a kernel cannot serve a call.
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
    """Let ``impl`` answer every call with ``impl="auto"``, in all threads, until the block ends.

    ``"triton"`` is then as explicit as in a call: what a kernel cannot serve raises.
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

    ``refusals`` lists every reason why the kernel cannot serve this call. ``auto`` takes the kernel when there is
    none and running it is ``worthwhile``, or else what the op has for this call on a ``cpu``, or else the reference;
    ``triton`` never falls back but raises ``RuntimeError`` with all of them.
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
    """Let every call of ``op`` use the form of that name, in all threads, until the block ends."""
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
    """The forms of one op. All take the same arguments, the first of which holds rows."""

    op: str
    by_name: Mapping[str, Callable[..., Any]]
    key: Callable[..., tuple[object, ...]]
    """From the arguments what the best form may depend on: widths and dtypes. Built in every call on a GPU."""
    refusals: Mapping[str, Callable[..., Sequence[str]]]
    """From the arguments every reason why a form cannot serve the call; a form that always can has none."""

    def run(self, rule: str, *arguments: Any) -> Any:
        """Run the form asked for, or the fastest if that is measured, or the ``rule``'s.

        Raises:
            RuntimeError: when a form was asked for that cannot serve, with the reasons.
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
            self.key(*arguments),
            rows.shape[0],
            rule,
            self._able,
            self._run_able,
            rows.device,
            "forms",
            (rule, *arguments),
        )

    def _able(self, rule: str, *arguments: Any) -> list[str]:
        """Names of the forms that can serve the call."""
        return [name for name in self.by_name if not self._reasons(name, arguments)]

    def _run_able(self, name: str, rule: str, *arguments: Any) -> Any:
        # The fastest form for a key may refuse one of its calls, for a matrix's alignment or its number of rows.
        able = name == rule or not self._reasons(name, arguments)
        return self.by_name[name if able else rule](*arguments)
