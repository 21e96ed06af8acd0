"""Problems for ops whose arguments go by name: solved by a kernel, by eager PyTorch and by an oracle in float64."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from seeds import generator
from torch import Tensor

from crossmae_kernels.testing import assert_within_budget, budgets, poisoned_allocations


@dataclass
class Problem:
    """Arguments, of which some may be None, and an upstream gradient."""

    arguments: dict[str, Tensor | None]
    upstream: Tensor

    def leaves(self, device, dtype, frozen=()):
        """The arguments as leaves; those in ``frozen`` want no gradient."""
        return {
            name: None if t is None else t.to(device, dtype).requires_grad_(name not in frozen)
            for name, t in self.arguments.items()
        }

    def solve(self, call, device, dtype, compute=None, frozen=()):
        """Output and gradients by name; under autocast to ``compute`` if given."""
        leaves = self.leaves(device, dtype, frozen)
        with nullcontext() if compute is None else torch.autocast(device, compute):
            out = call(**leaves)
        wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
        gradients = torch.autograd.grad(out, list(wanted.values()), self.upstream.to(device, out.dtype))
        return {"out": out.detach()} | {f"d {name}": g for name, g in zip(wanted, gradients, strict=True)}

    def rounded(self, dtype):
        """The same with arguments and upstream gradient rounded to ``dtype``."""
        arguments = {name: None if t is None else t.to(dtype) for name, t in self.arguments.items()}
        return Problem(arguments, self.upstream.to(dtype))

    def exact(self, oracle, dtype):
        """The oracle's answer in float64, for arguments rounded to ``dtype``."""
        return self.rounded(dtype).solve(oracle, "cpu", torch.float64)

    def judge(self, kernels, eager, oracle, device, dtype, compute=None):
        """Every result of each of ``kernels`` within the budget, with fresh allocations poisoned; returns the last."""
        check = self.judged(eager, oracle, device, dtype, compute)
        return [check(call) for call in kernels][-1]

    def judged(self, eager, oracle, device, dtype, compute=None):
        """What ``judge`` does with each of the kernels."""
        exact, rounded = self.exact(oracle, dtype), self.rounded(dtype)
        allowed = budgets(lambda: rounded.solve(eager, device, dtype, compute), exact)

        def check(call):
            with poisoned_allocations():
                found = self.solve(call, device, dtype, compute)
            assert set(found) == set(exact)
            assert_within_budget(found, exact, allowed)
            return found

        return check


def same(ours, theirs):
    """Whether results are bitwise equal."""
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Randoms:
    """Random tensors exact in float16."""

    def __init__(self, seed=0):
        self.generator = generator(seed)

    def __call__(self, *shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=self.generator)).half().float()


def naive_norm(x, scale, shift, eps):
    """LayerNorm as it is defined."""
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    x = x if scale is None else x * scale
    return x if shift is None else x + shift


def naive_linear(x, weight, bias):
    """A linear layer as it is defined."""
    out = torch.einsum("...i,oi->...o", x, weight)
    return out if bias is None else out + bias


def naive_gelu(x):
    """GELU as it is defined."""
    return x * torch.special.ndtr(x)
