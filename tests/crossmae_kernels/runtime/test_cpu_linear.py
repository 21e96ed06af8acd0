"""Linear layers on a CPU by oneDNN: judged as kernels are, and left to PyTorch where they do not serve."""

import time

import pytest
import torch
import torch.nn.functional as F
from oracles import naive_linear, oracle_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from crossmae_kernels.runtime import cpu_linear, tuning
from crossmae_kernels.runtime.cpu_linear import linear
from crossmae_kernels.testing import Draw, Judge, solve
from crossmae_kernels.testing.problems import linear_residual, mlp, norm_linear, project_feature_maps

PROBLEMS = {
    "norm_linear": lambda: norm_linear(Draw(), (2, 5), 32, 48, "gelu"),
    "linear_residual": lambda: linear_residual(Draw(), (2, 5), 32, 48, table=4),
    "mlp": lambda: mlp(Draw(), (2, 5), 32, 48, "recompute"),
    "project_feature_maps": lambda: project_feature_maps(Draw(), (2, 2), 3, 2, 24, 20),
}
problems = pytest.mark.parametrize("name", PROBLEMS)


class Calls:
    """Counts calls of the operator."""

    def __init__(self):
        self.count = 0

    def by_onednn(self, *arguments):
        self.count += 1
        return torch.ops.mkldnn._linear_pointwise(*arguments, "none", [], "")


@pytest.fixture
def calls(monkeypatch):
    """Every layer is large, and oneDNN is faster."""
    calls = Calls()
    monkeypatch.setattr(cpu_linear, "LEAST_MACS", 0)
    monkeypatch.setattr(cpu_linear, "_faster", True)
    with tuning.tuning_mode("forms"), torch.library._scoped_library("crossmae_kernels", "IMPL") as library:
        library.impl("cpu_linear", calls.by_onednn, "CPU", allow_override=True)
        yield calls


def drawn(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.budget
@problems
def test_keeps_to_the_budget(name, calls, monkeypatch):
    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: True)  # memory is poisoned in deterministic mode
    problem = PROBLEMS[name]()
    Judge(problem, torch.float32, oracle_of(problem)).check(problem.by())
    assert calls.count >= 3  # forward, and a product for each gradient


@problems
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_the_reference_and_16_bits_are_pytorchs(name, impl, calls):
    problem = PROBLEMS[name]()
    solve(problem, problem.by(impl), torch.float32 if impl == "reference" else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        solve(problem, problem.by(impl), torch.float32)
    assert calls.count == 0


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_and_their_gradients_are_those_of_the_definition(leading, biased, calls):
    shapes = [(*leading, 6), (4, 6), *([(4,)] if biased else [])]
    upstream, direction = drawn((*leading, 4), (*leading, 6))

    def derivatives(function, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in drawn(*shapes)]
        out = function(leaves[0], leaves[1], leaves[2] if biased else None)
        first = torch.autograd.grad(out.square(), leaves, upstream.to(dtype), create_graph=True)
        second = torch.autograd.grad(first[0], leaves[:2], direction.to(dtype))
        return [out, *first, *second]

    exact = derivatives(naive_linear, torch.float64)
    for found, wanted in zip(derivatives(linear, torch.float32), exact, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert calls.count > 3


def test_only_gradients_that_are_asked_for_are_computed(calls):
    x, weight = drawn((5, 6), (4, 6))
    linear(x, weight.detach()).sum().backward()
    linear(x.detach(), weight).sum().backward()
    assert calls.count == 2 + 2


@pytest.mark.parametrize("strided", ["transposed", "expanded", "sliced"])
def test_strides_do_not_matter(strided, calls):
    base = torch.randn(8, 8)
    x = {"transposed": base.T, "expanded": base[:1].expand(8, 8), "sliced": base[::2]}[strided]
    weight = torch.randn(8, 5).T
    torch.testing.assert_close(linear(x, weight), naive_linear(x.double(), weight.double(), None).float())
    assert calls.count == 1


def vmapped(x, weight):
    return torch.func.vmap(lambda row: linear(row[None], weight)[0])(x)


def forward_mode(x, weight):
    return torch.func.jvp(lambda x: linear(x, weight), (x,), (torch.ones_like(x),))[0]


def dual(x, weight):
    with torch.autograd.forward_ad.dual_level():
        made = linear(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), weight)
        return torch.autograd.forward_ad.unpack_dual(made).primal


def traced(x, weight):
    return torch.jit.trace(lambda x: linear(x, weight), x, check_trace=False)(x)


def exported(x, weight):
    class Layer(torch.nn.Module):
        def forward(self, x):
            return linear(x, weight)

    program = torch.export.export(Layer(), (x,))
    assert not any("crossmae_kernels" in str(node.target) for node in program.graph.nodes)
    return program.module()(x)


def in_autocast(x, weight):
    with torch.autocast("cpu", torch.bfloat16):
        return linear(x, weight)


def deterministic(x, weight):
    torch.use_deterministic_algorithms(True)
    try:
        return linear(x, weight)
    finally:
        torch.use_deterministic_algorithms(False)


def without_tuning(x, weight):
    with tuning.tuning_mode("off"):
        return linear(x, weight)


def without_onednn(x, weight):
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        return linear(x, weight)
    finally:
        torch._C._set_mkldnn_enabled(before)


def a_subclass(x, weight):
    class Marked(torch.Tensor):
        pass

    return linear(x.as_subclass(Marked), weight).as_subclass(torch.Tensor)


def counted(x, weight):
    with FlopCounterMode(display=False) as counter:
        out = linear(x, weight)
    assert counter.get_total_flops() == 2 * 3 * 4 * 6
    return out


def in_float64(x, weight):
    return linear(x.double(), weight.double()).float()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    "way",
    [
        vmapped,
        forward_mode,
        dual,
        traced,
        exported,
        in_autocast,
        deterministic,
        without_tuning,
        without_onednn,
        a_subclass,
        counted,
        in_float64,
    ],
    ids=lambda way: way.__name__,
)
def test_is_left_to_pytorch(way, calls):
    x, weight = torch.randn(3, 6), torch.randn(4, 6)
    torch.testing.assert_close(way(x, weight).float(), F.linear(x, weight), rtol=0.02, atol=0.02)
    assert calls.count == 0


def test_a_mode_may_compute_the_backward_pass_in_float64():
    class Wide(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
            wide = tree_map_only(Tensor, lambda x: x.double(), (arguments, keywords or {}))
            return tree_map_only(Tensor, lambda x: x.float(), operator(*wide[0], **wide[1]))

    x, weight = drawn((3, 6), (4, 6))
    out = torch.ops.crossmae_kernels.cpu_linear(x, weight, None)
    with Wide():
        (found,) = torch.autograd.grad(out, x, torch.ones(3, 4))
    torch.testing.assert_close(found, weight.detach().sum(0).expand(3, 6))


def test_small_layers_are_pytorchs(calls, monkeypatch):
    monkeypatch.setattr(cpu_linear, "LEAST_MACS", 3 * 6 * 4)
    linear(torch.randn(3, 6), torch.randn(4, 6))
    linear(torch.randn(3, 6), torch.randn(3, 6))
    assert calls.count == 1


def test_its_backward_pass_is_counted_and_it_is_compiled(calls):
    x, weight, bias = drawn((3, 6), (4, 6), (4,))
    out = linear(x, weight, bias).sum()
    with FlopCounterMode(display=False) as counter:
        out.backward()
    assert counter.get_total_flops() == 2 * 2 * 3 * 4 * 6
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    before = calls.count
    found, wanted = (
        torch.autograd.grad(call(x, weight, bias), (x, weight, bias), torch.ones(3, 4)) for call in (compiled, linear)
    )
    assert all(map(torch.equal, found, wanted))
    assert calls.count == before + 2 * 3


@pytest.mark.parametrize(("ratio", "count"), [(1.31, 1), (1.29, 0)])
def test_it_serves_if_it_is_clearly_faster(ratio, count, calls, monkeypatch):
    monkeypatch.setattr(cpu_linear, "_faster", None)
    asked = []
    monkeypatch.setattr(cpu_linear, "_measured", lambda: asked.append(1) or ratio)
    for _ in range(3):
        linear(torch.randn(3, 6), torch.randn(4, 6))
    assert (len(asked), calls.count) == (1, 3 * count)


def test_a_measurement_is_on_the_cpu_in_float32_whatever_the_defaults_are(monkeypatch):
    seen, by_onednn = set(), cpu_linear._by_onednn

    def watched(x, weight):
        seen.update((t.device.type, t.dtype) for t in (x, weight))
        return by_onednn(x, weight)

    monkeypatch.setattr(cpu_linear, "_by_onednn", watched)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            cpu_linear._measured()
    finally:
        torch.set_default_dtype(before)
    assert seen == {("cpu", torch.float32)}


def test_a_measurement_is_of_numbers_and_changes_none():
    state = torch.get_rng_state()
    began = time.perf_counter()
    with FakeTensorMode():
        ratio = cpu_linear._measured()
    assert 0.1 < ratio < 10
    assert time.perf_counter() - began < 30
    assert torch.equal(torch.get_rng_state(), state)
