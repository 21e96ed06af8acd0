"""Which implementation serves a call: the Triton kernel or the PyTorch reference.

The process-wide default answers calls with ``impl="auto"``. It starts as the environment variable
``CROSSMAE_KERNELS_IMPL`` says, ``"auto"`` unless set, and changes within ``default_implementation``.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast, get_args

Implementation = Literal["auto", "triton", "reference"]
IMPLEMENTATIONS = get_args(Implementation)

ENVIRONMENT_VARIABLE = "CROSSMAE_KERNELS_IMPL"

# In front of the reasons why a kernel cannot serve a call.
REFUSAL = "cannot serve this call: "


def _checked(impl: str, where: str) -> Implementation:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{where} must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    return cast(Implementation, impl)


_default: Implementation = _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


def default() -> Implementation:
    """The process-wide default."""
    return _default


@contextmanager
def default_implementation(impl: Implementation) -> Iterator[None]:
    """Let ``impl`` answer every call with ``impl="auto"``, in all threads, until the block ends.

    ``"triton"`` is then as explicit as in a call: what a kernel cannot serve raises.
    """
    global _default
    before, _default = _default, _checked(impl, "default_implementation: impl")
    try:
        yield
    finally:
        _default = before


def choose(
    op: str, impl: Implementation, refusals: Sequence[str], worthwhile: bool = True
) -> Literal["triton", "reference"]:
    """Resolve ``impl`` for one call.

    ``refusals`` lists every reason why the kernel cannot serve this call. ``auto`` takes the kernel when there is
    none and running it is ``worthwhile``; ``triton`` never falls back but raises ``RuntimeError`` with all of them.
    """
    if impl not in IMPLEMENTATIONS:
        _checked(impl, f"{op}: impl")
    if impl == "auto":
        impl = _default
    if impl == "triton" and refusals:
        raise RuntimeError(f"{op}: impl='triton' {REFUSAL}" + "; ".join(refusals))
    if impl == "auto":
        return "triton" if worthwhile and not refusals else "reference"
    return impl
