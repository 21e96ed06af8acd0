"""Which form of an op's kernels runs: one kernel, kernels of ours for each matrix product, or a library's products.

An op that has several forms chooses by an analytic rule; tuning may replace the choice for a device. Tests and
measurements ask for one by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from crossmae_kernels.runtime.dispatch import REFUSAL
from crossmae_kernels.runtime.launch import on_device_of
from crossmae_kernels.runtime.tuning import enabled, tuned

_asked_for: dict[str, str] = {}


@contextmanager
def form_of(op: str, name: str) -> Iterator[None]:
    """Let every call of ``op`` take the form of that name, in all threads, until the block ends."""
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
    """The forms of one op. All take the same arguments, the first of which is a tensor."""

    op: str
    by_name: Mapping[str, Callable[..., Any]]
    key: Callable[..., tuple[object, ...]]
    """From the arguments what the best form may depend on: widths and dtypes, for tuning."""
    refusals: Mapping[str, Callable[..., Sequence[str]]]
    """From the arguments every reason why a form cannot serve the call; a form that always can has none."""

    def run(self, rule: str, *arguments: Any) -> Any:
        """Run the form asked for, or the fastest if tuned, or the ``rule``'s.

        Raises:
            RuntimeError: when a form was asked for that cannot serve, with the reasons.
        """
        asked = _asked_for.get(self.op)
        if asked is not None:
            if reasons := self._reasons(asked, arguments):
                raise RuntimeError(f"{self.op}: form {asked!r} {REFUSAL}" + "; ".join(reasons))
            rule = asked
        elif enabled():
            rule = self._tuned(rule, arguments)
        return self.by_name[rule](*arguments)

    def _reasons(self, name: str, arguments: tuple[Any, ...]) -> Sequence[str]:
        if name not in self.by_name:
            return [f"there is no such form, only {', '.join(self.by_name)}"]
        return self.refusals[name](*arguments) if name in self.refusals else []

    def _tuned(self, rule: str, arguments: tuple[Any, ...]) -> str:
        on: Tensor = arguments[0]
        with on_device_of(on):
            return tuned(
                f"{self.op}.form",
                self.key(*arguments),
                rule,
                lambda: [name for name in self.by_name if not self._reasons(name, arguments)],
                lambda name: self.by_name[name](*arguments),
                on.device,
            )
