"""PyTorch's operators with stochastically rounded results: samples of the errors that a dtype forces.

An operator's result is computed in float64 and rounded to the dtype up or down at random, with probabilities given by
the distances (stochastic rounding). Exact results are not rounded, so a copy stays a copy. Sums inside a 16-bit
operator are not rounded: hardware and kernels accumulate in float32, which is exact compared with the result's
rounding. In float32 it is not, so there an operator's own error is kept, with a random sign; and products and sums
accumulate in a random order, so that no single order in which errors happen to cancel decides what is allowed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from crossmae_kernels.testing.recomputation import Recomputing

BITS_OF_FLOAT64 = 53

aten = torch.ops.aten
# Arguments of products, by their place, and the dimension of each that is summed over.
_PRODUCTS = {
    aten.mm.default: {0: -1, 1: -2},
    aten.bmm.default: {0: -1, 1: -2},
    aten.addmm.default: {1: -1, 2: -2},
    aten.baddbmm.default: {1: -1, 2: -2},
}
# Their second argument names the dimensions, all of them without one.
_SUMS = (aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim)


@contextmanager
def random_rounding(seed: int) -> Iterator[None]:
    """Round the results of all PyTorch operators at random, forward and backward, within the block.

    Operators must be out of place. Attention is computed by its definition, so that its weights, as operands of a
    product, are rounded to the dtype like any operand; in float32 its backward pass finds the scores again, since the
    errors of large ones are what a fused kernel cannot avoid.
    """
    # Imports Triton, which must not happen before the interpreter is requested.
    from torch.nn.attention import SDPBackend, sdpa_kernel

    in_dtype = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH), _RandomRounding(seed), Recomputing():
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(in_dtype)


def round_at_random(wide: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """float64 -> one of the two nearest numbers of ``dtype``, on average ``wide`` itself."""
    # As integers: adding a random amount below the last kept bit carries into it with the right probability.
    dropped = BITS_OF_FLOAT64 - 1 + round(math.log2(torch.finfo(dtype).eps))
    random = torch.randint(2**dropped, wide.shape, generator=generator, device=wide.device)
    return ((wide.view(torch.int64) + random) >> dropped << dropped).view(torch.float64).to(dtype)


class _RandomRounding(TorchDispatchMode):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*(self._reordered(func, args) if _in_float32(args) else args), **kwargs)
        if func.is_view or func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags:
            return result
        if not any(_is_rounded(leaf) for leaf in tree_leaves((args, kwargs))):
            return result
        wide = func(*tree_map(_widened, args), **tree_map(_widened, kwargs))
        for narrow, exact in zip(tree_leaves(result), tree_leaves(wide), strict=True):
            if _is_rounded(narrow):
                narrow.copy_(self._rounded(narrow, exact))
        return result

    def _generator(self, device: torch.device) -> torch.Generator:
        generator = self._generators.get(device)
        if generator is None:
            self._generators[device] = generator = torch.Generator(device).manual_seed(self._seed)
        return generator

    def _reordered(self, func: Any, args: Any) -> Any:
        """The arguments of a float32 product or sum, with the terms in random order."""
        if func in _PRODUCTS:
            places = _PRODUCTS[func]
            order = self._order(args[min(places)], places[min(places)])
            return [x.index_select(places[i], order) if i in places else x for i, x in enumerate(args)]
        if func in _SUMS:
            x, *others = args
            for dimension in (others and others[0]) or range(x.ndim):
                x = x.index_select(dimension, self._order(x, dimension))
            return [x, *others]
        return args

    def _order(self, x: Tensor, dimension: int) -> Tensor:
        return torch.randperm(x.shape[dimension], generator=self._generator(x.device), device=x.device)

    def _rounded(self, narrow: Tensor, exact: Tensor) -> Tensor:
        generator = self._generator(narrow.device)
        if narrow.dtype == torch.float32:
            sign = 2 * torch.randint(2, (), generator=generator, device=narrow.device) - 1
            # No error if either is infinite.
            exact = exact + sign * (narrow - exact).nan_to_num(0, 0, 0)
        return round_at_random(exact, narrow.dtype, generator)


def _in_float32(args: Any) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float32


def _is_rounded(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float16, torch.bfloat16)


def _widened(value: Any) -> Any:
    """Tensors, and requested dtypes, as float64."""
    if _is_rounded(value):
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value
