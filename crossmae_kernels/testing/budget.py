"""How a kernel is judged: an error budget against float64.

**Error budget.** Let ``exact`` be a result in float64, and let ``eager`` be PyTorch's own operators on the same
arguments in the dtype under test. A kernel may err, in the maximum and in the root mean square over all elements,

    ``error <= 2 * max over draws of error(eager, rounded at random) + u * |exact|``,

where ``|exact|`` is the maximum or the root mean square of the exact result and ``u`` the dtype's unit roundoff
(2^-24, 2^-11, 2^-8 for float32, float16, bfloat16).

*Why not eager's error as it is?* It is a single draw, and a new one for every CPU and library: what one
accumulates in 16 bits, another does in float32 and a third in another order. A tensor of one number may be met exactly;
so may the few that make up the norms of a larger one, whose errors all come from the same roundings before. So every
operator of eager is computed in float64 and its result rounded to the dtype at random (``testing.rounding``): the
roundings that the dtype forces on whoever keeps intermediate results in it, and nothing else. In 16 bits this is the
same on every machine. In float32, where sums err by more than their last rounding, operators keep their own errors;
products and sums add up in another order for each draw, so that what is left of the machine is how it sums blockwise.

*Why the largest of 16 draws?* Errors of a kernel that rounds where eager does are one more draw from the same
distribution, at most: rounding to nearest, it errs ``sqrt(2)`` times less in the root mean square than at random, and
fused, in fewer places. Over many independent errors, all draws of a norm agree, and the largest is no larger than the
others: the budget is then 2.8 times what eager errs when it rounds to nearest. Over few, draws scatter, and the budget
grows just as far as chance reaches. For a single number with a normally distributed error, the worst case, a right
kernel that rounds as often as eager fails once in some 17,000 times, the band left aside.

*Why twice?* A kernel may round in other places than eager does, and add in another order. The band is the one rounding
that nobody can avoid: a result x, however computed, is stored with an error of up to ``u |x|``. Nothing in the budget
grows with sizes: what accumulates must accumulate no faster than eager's.
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
    """How far a result may err, and its dtype."""

    dtype: torch.dtype
    error: Error


def magnitude(tensor: Tensor) -> Error:
    """Maximum and root mean square of the absolute values; 0 of an empty tensor."""
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
    """How far a kernel may err in each result.

    Args:
        eager: solves the problem with PyTorch's operators in the dtype under test, anew in each of its calls. Arguments
            must be rounded to their dtypes before; casts inside are part of what eager does.
        exact: what is right, in float64.
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
        # The maximum of a tensor is not finite if one of its values is not.
        largest = torch.tensor([getattr(e, norm) for e in errors], dtype=torch.float64).max().item()
        return 2 * largest + roundoff * getattr(size, norm)

    return Budget(dtype, Error(*map(allowed, NORMS)))
