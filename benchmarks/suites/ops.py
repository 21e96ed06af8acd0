"""What the suites of single operations share: the kernels, the reference and the compiled reference."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.problem import BOTH, FORWARD, Arguments, Form, Problem, Random, Solver, Work, compiled


def op_problem(
    suite: str,
    form: Form,
    about: dict[str, Any],
    batch: int,
    arguments: Callable[[int, Random], Arguments],
    call: Callable[..., Any],
    forward: Work,
    backward: Work,
    others: Mapping[str, Callable[[], Solver]] | None = None,
    variants: Mapping[str, Callable[[], Solver]] | None = None,
    constants: frozenset[str] = frozenset(),
) -> Problem:
    """An operation of ``crossmae_kernels`` against its reference, eager and compiled.

    Args:
        suite: name of the suite.
        form: how large, and where.
        about: names the problem.
        batch: how many images.
        arguments: draws them.
        call: the operation.
        forward: the least work forward.
        backward: and backward.
        others: contenders of other people.
        variants: further contenders of ours.
        constants: arguments without a gradient.
    """

    def reference() -> Solver:
        return Solver(call, "reference")

    contenders: dict[str, Callable[[], Solver]] = {
        "reference": reference,
        "fused": lambda: Solver(call, "triton"),
        **(variants or {}),
        **(others or {}),
        **compiled(form, "reference", reference),
    }
    return Problem(
        suite=suite,
        about=about,
        batch=batch,
        dtype=form.dtype,
        arguments=arguments,
        contenders=contenders,
        ours=frozenset({"reference", "fused", *(variants or {})}),
        exact=reference,
        work={FORWARD: forward, BOTH: Work(forward.bytes + backward.bytes, forward.flops + backward.flops)},
        constants=constants,
    )
