"""How a kernel is judged: an error budget against float64.

**Error budget.** Let ``exact`` be a result in float64, and let ``eager`` be PyTorch's own operators on the same
arguments in the dtype under test. A kernel's error is bounded, in the maximum and in the root mean square over all
elements, by

    ``error <= 2 * max over draws of error(eager, rounded at random) + u * |exact|``,

where ``|exact|`` is the maximum or the root mean square of the exact result and ``u`` the dtype's unit roundoff
(2^-24, 2^-11, 2^-8 for float32, float16, bfloat16).

*Why not simply eager's error?* It is a single sample, and a different one for every CPU and library: one accumulates in
16 bits, another in float32, a third in another order. A tensor with one number may happen to be exact; so may the few
that determine the norms of a larger one, whose errors all come from the same earlier roundings. Therefore every
operator of eager is computed in float64 and its result rounded to the dtype at random (``testing.rounding``): only the
roundings that the dtype forces on any implementation that stores intermediate results in it. In 16 bits this is the
same on every machine. In float32, where sums err by more than their last rounding, operators keep their own errors;
products and sums accumulate in another order for each draw, so only the machine's blocking of sums remains; and
attention finds its scores again in the backward pass, as fused kernels do (``testing.recomputation``).

*Why the largest of 16 draws?* The errors of a kernel that rounds where eager does are at most one more draw from the
same
distribution: rounding to nearest has ``sqrt(2)`` times less root mean square error than random rounding, and a fused
kernel rounds in fewer places. With many independent errors, all draws of a norm agree, and the budget is 2.8 times
eager's error when rounding to nearest. With few, draws scatter, and the budget grows only as far as chance reaches. For
a single number with a normally distributed error, the worst case, a correct kernel that rounds as often as eager fails
once in some 17,000 times, not counting the band.

*Why twice?* A kernel may round in other places than eager, and add in another order. The band is the one unavoidable
rounding: a result x, however computed, is stored with an error of up to ``u |x|``. Nothing in the budget grows with
sizes: errors may accumulate no faster than eager's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmae_kernels.testing.rounding import random_rounding

DRAWS = 16
NORMS = ("maximum", "rms")

# By name: an output, gradients.
Results = Mapping[str, Tensor]


@dataclass(frozen=True)
class Error:
    """Absolute error of a tensor, or the largest one allowed."""

    maximum: float
    rms: float


@dataclass(frozen=True)
class Budget:
    """The largest allowed error of a result, and its dtype."""

    dtype: torch.dtype
    error: Error


def magnitude(tensor: Tensor) -> Error:
    """Maximum and root mean square of the absolute values; 0 for an empty tensor."""
    if not tensor.numel():
        return Error(0.0, 0.0)
    values = tensor.detach().double()
    return Error(values.abs().max().item(), values.square().mean().sqrt().item())


def error(actual: Tensor, exact: Tensor) -> Error:
    """Error of ``actual`` against ``exact``, float64 of the same shape on any device."""
    if actual.shape != exact.shape or exact.dtype != torch.float64:
        raise ValueError(
            f"exact must be float64 of shape {tuple(actual.shape)}, got {exact.dtype} {tuple(exact.shape)}"
        )
    return magnitude(actual.detach().double() - exact.to(actual.device))


def budgets(eager: Callable[[], Results], exact: Results) -> dict[str, Budget]:
    """The error budget of each result.

    Args:
        eager: solves the problem with PyTorch's operators in the dtype under test, anew in each call. Arguments must
            already be rounded to their dtypes; casts inside are part of eager's computation.
        exact: the exact results, in float64.
    """
    draws = []
    for seed in range(DRAWS):
        with random_rounding(seed):
            draws.append(eager())
    return {name: _budget([draw[name] for draw in draws], truth) for name, truth in exact.items()}


def _budget(draws: list[Tensor], exact: Tensor) -> Budget:
    errors, size, dtype = [error(draw, exact) for draw in draws], magnitude(exact), draws[0].dtype
    roundoff = torch.finfo(dtype).eps / 2

    def allowed(norm: str) -> float:
        # A tensor's maximum is not finite if any of its values is not.
        largest = torch.tensor([getattr(e, norm) for e in errors], dtype=torch.float64).max().item()
        return 2 * largest + roundoff * getattr(size, norm)

    return Budget(dtype, Error(*map(allowed, NORMS)))
