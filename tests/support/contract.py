"""The registry's problems by name, solved once for all tests that compare with it, and a witness of every call."""

import functools

import seeds
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from crossmae_kernels.testing import Draw, solve
from crossmae_kernels.testing.problems import tiny


@functools.cache
def _problems(seed, device, batch):
    return {str(problem): problem for problem in tiny(Draw(seed, device), batch)}


def posed(name, device, batch=2):
    """A problem of the registry by its name."""
    return _problems(seeds.seeded(), device, batch)[name]


NAMES = [*_problems(0, "cpu", 2)]


def _paths():
    """Each problem in a dtype, or in 16 bits too where that differs in more than tiles."""
    for name in NAMES:
        problem = posed(name, "cpu")
        if problem.op == "mix_feature_maps":
            yield from ((name, dtype) for dtype in (torch.float32, torch.bfloat16))
        else:
            yield name, torch.bfloat16 if torch.float32 not in problem.dtypes else torch.float32


# Every path through the kernels, and of those that differ in the form of kernels alone, one: what PyTorch sees.
PATHS = [*_paths()]
# In bfloat16 as well, in which models are trained.
JUDGED = [*dict.fromkeys([*PATHS, *((n, torch.bfloat16) for n in NAMES if torch.bfloat16 in posed(n, "cpu").dtypes)])]
CALLS = [
    name
    for name in NAMES
    if set(posed(name, "cpu").forms.values()) <= {"tiled"}
    # Of attention to many keys one: what else is saved has nothing to do with how queries and keys are passed.
    and ("67" not in name or name == "cross_attention, 5 x 67, 2 heads of 16, dense")
]
TRAINED = [name for name in CALLS if posed(name, "cpu").differentiable]


@functools.cache
def _solved(seed, name, device, dtype):
    problem = posed(name, device)
    with Witness() as witness:
        return solve(problem, problem.by("triton"), dtype), witness.seen


def solved(name, device, dtype):
    """What the kernels make of a problem."""
    results, _ = _solved(seeds.current, name, device, dtype)
    return results


def operators_of(name, device, dtype):
    """The operators that were called for that, each under the eyes of a witness."""
    _, seen = _solved(seeds.current, name, device, dtype)
    return seen


def alone_and_frozen(problem):
    """Sets of frozen arguments: for each argument all others, and the first one."""
    names = problem.differentiable
    yield from (set(names) - {name} for name in names)
    if len(names) > 2:
        yield {names[0]}


def same(ours, theirs):
    """Whether results are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _storages(values):
    """Of all tensors, by the address of the object; storages without elements have no address of their own."""
    return [tensor.untyped_storage()._cdata for tensor in tensors(values)]


def _looks(values):
    return [(t.shape, t.dtype, t.stride()) for t in tensors(values)]


class Witness(TorchDispatchMode):
    """Sees that operators do as they say: results of their own memory, as the fake has them, and no argument written.

    ``seen`` has the names of all of this package's that were called.
    """

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "crossmae_kernels":
            return func(*args, **(kwargs or {}))
        self.seen.add(func.name().removeprefix("crossmae_kernels::"))
        before = [t.clone() for t in tensors(args)]
        results = func(*args)
        made = tensors(results)
        mode = FakeTensorMode()
        given = tree_map_only(torch.Tensor, lambda t: mode.from_tensor(t.detach()), args)
        with mode:
            fakes = func(*given)
        assert _looks(made) == _looks(fakes)
        assert len(set(_storages(results))) == len(made) > 0
        assert not set(_storages(results)) & set(_storages(args))
        assert all(torch.equal(a, b) for a, b in zip(tensors(args), before, strict=True))
        return results
