"""Who looks at operators sees them; where nobody does, a call goes to the launcher, and does the same."""

from contextlib import nullcontext

import pytest
import torch
from operators import names_of_operators
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

import crossmae_kernels as ck
from crossmae_kernels.projection import ops
from crossmae_kernels.testing import Draw
from crossmae_kernels.testing.problem import named
from crossmae_kernels.testing.problems import tiny

NAME = "crossmae_kernels::linear_residual"


@pytest.fixture
def arguments():
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 16), (8, 16), (8,), (4, 8)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.fixture
def dispatched(monkeypatch):
    """Names of operators that go through PyTorch's dispatcher."""
    names = []
    through = ops._linear_residual._dispatched

    def noted(*given):
        names.append(NAME)
        return through(*given)

    monkeypatch.setattr(ops._linear_residual, "_dispatched", noted)
    return names


def call(*given):
    return ck.linear_residual(*given, impl="triton")


def results(*given):
    out = call(*given)
    return [out, *torch.autograd.grad(out.square().sum(), given)]


def test_the_dispatcher_changes_nothing(interpreter, arguments, dispatched):
    direct = results(*arguments)
    assert dispatched == []
    with names_of_operators() as seen:
        watched = results(*arguments)
    assert dispatched == [NAME]
    assert seen == [NAME, f"{NAME}_backward"]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(direct, watched, strict=True))


@pytest.mark.parametrize("name", ["mlp", "norm_linear", "linear_residual", "cross_attention", "mix_feature_maps"])
def test_who_looks_at_one_direction_alone_changes_nothing(interpreter, name):
    """What a launcher does not return is None to one and an empty tensor to the other."""
    (problem, *_) = (problem for problem in tiny(Draw(), 2) if problem.op == name)
    found = []
    for looks in ([nullcontext] * 2, [names_of_operators, nullcontext], [nullcontext, names_of_operators]):
        leaves = problem.leaves(torch.float16)
        with looks[0]():
            out = problem.by("triton")(**leaves)
        with looks[1]():
            out.square().sum().backward()
        found.append([out, *(leaf.grad for _, leaf in named(leaves) if leaf.requires_grad)])
    for other in found[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[0], other, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_recorded(interpreter, arguments, dispatched, mode):
    with mode():
        out = call(*arguments)
    assert dispatched == []
    assert out.grad_fn is None
    assert torch.equal(out, call(*arguments))


def test_a_profiler_sees_them(interpreter, arguments, dispatched):
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        results(*arguments)
    assert dispatched == [NAME]
    assert {NAME, f"{NAME}_backward"} <= {event.key for event in seen.key_averages()}


def test_a_tracer_sees_them(interpreter, arguments):
    graph = make_fx(call)(*(t.detach() for t in arguments)).graph
    assert "linear_residual" in str([node.target for node in graph.nodes])


def test_tensors_without_data_ask_the_fake(interpreter, arguments, dispatched):
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(t.detach()) for t in arguments]
    # Outside of their mode too.
    assert isinstance(call(*fakes), FakeTensor)
    assert dispatched == [NAME]


class Wrapped(torch.Tensor):
    """A class of tensors that sees what it is given to."""

    seen: list[str] = []

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func.name())
        given = tree_map_only(Wrapped, lambda t: t.inner, (args, kwargs or {}))
        out = tree_map_only(torch.Tensor, Wrapped, func(*given[0], **given[1]))
        return return_and_correct_aliasing(func, args, kwargs or {}, out)


def test_a_class_of_tensors_of_ones_own_sees_them(interpreter, arguments):
    Wrapped.seen.clear()
    x, *others = (t.detach() for t in arguments)
    out = call(Wrapped(x), *others)
    assert NAME in Wrapped.seen
    assert torch.equal(out.inner, call(x, *others))


def test_hooks_on_saved_tensors_are_called(interpreter, arguments, dispatched):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        call(*arguments)
    assert dispatched == []
    assert [t.shape for t in saved] == [arguments[0].shape, arguments[1].shape]
