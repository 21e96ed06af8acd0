"""Which form of an op's kernels runs: one kernel, kernels of ours for each matrix product, or the vendor's products.

An op that has several forms chooses by an analytic rule; tuning may replace the choice for a device. Tests and
measurements ask for one by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from crossmae_kernels.runtime.dispatch import REFUSAL
from crossmae_kernels.runtime.launch import on_device_of
from crossmae_kernels.runtime.tuning import tuned


@dataclass(frozen=True)
class Form:
    """By its name: ``single``, ``tiled`` or ``vendor``."""

    name: str


_asked_for: dict[str, Form] = {}


@contextmanager
def form_of(op: str, name: str) -> Iterator[None]:
    """Let every call of ``op`` take the form of that name, in all threads, until the block ends."""
    before = _asked_for.get(op)
    _asked_for[op] = Form(name)
    try:
        yield
    finally:
        del _asked_for[op]
        if before is not None:
            _asked_for[op] = before


def choose_form(
    op: str,
    key: tuple[object, ...],
    rule: str,
    refusals: Mapping[str, Sequence[str]],
    run: Callable[[Form], object],
    tensor: Tensor,
) -> str:
    """The form to run.

    Args:
        op: its name.
        key: widths and dtypes, for tuning.
        rule: name of the analytic choice.
        refusals: for each form that the op has, every reason why it cannot serve this call.
        run: does the work in a form.
        tensor: it runs where this one lies.

    Raises:
        RuntimeError: when a form was asked for that cannot serve, with the reasons.
    """
    asked = _asked_for.get(op)
    if asked is not None:
        reasons = refusals.get(asked.name, [f"there is no such form, only {', '.join(refusals)}"])
        if reasons:
            raise RuntimeError(f"{op}: form {asked.name!r} {REFUSAL}" + "; ".join(reasons))
        return asked.name
    others = [Form(name) for name, reasons in refusals.items() if not reasons]
    with on_device_of(tensor):
        return tuned(f"{op}.form", key, Form(rule), lambda: others, run, tensor.device).name
