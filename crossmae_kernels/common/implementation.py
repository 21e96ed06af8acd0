"""Which implementation serves a call: the Triton kernel or the PyTorch reference."""

from collections.abc import Sequence
from typing import Literal, get_args

Implementation = Literal["auto", "triton", "reference"]


def choose(op: str, impl: Implementation, refusals: Sequence[str]) -> Literal["triton", "reference"]:
    """Resolve ``impl`` for one call.

    ``refusals`` lists every reason why the kernel cannot serve this call. ``auto`` takes the kernel when there is
    none; ``triton`` never falls back but raises ``RuntimeError`` with all of them.
    """
    if impl not in get_args(Implementation):
        raise ValueError(f"{op}: impl must be one of {', '.join(get_args(Implementation))}, got {impl!r}")
    if impl == "triton" and refusals:
        raise RuntimeError(f"{op}: impl='triton' cannot serve this call: " + "; ".join(refusals))
    return "reference" if impl == "reference" or refusals else "triton"


NO_KERNEL = ("this op has no Triton kernel",)
