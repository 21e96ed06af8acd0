"""Attention in 16 bits on a CPU: judged as kernels are, and taken where it serves."""

import pytest
import torch
from contract import same
from functorch.compile import make_boxed_func
from oracles import oracle_of
from torch._dynamo.backends.common import aot_autograd
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import crossmae_kernels as ck
from crossmae_kernels.cross_attention import cpu, cpu_products
from crossmae_kernels.testing import Draw, Judge, solve
from crossmae_kernels.testing.problems import cross_attention, cross_attention_kvpacked, self_attention_qkvpacked

PACKINGS = {
    "none": lambda keys: cross_attention(Draw(), 2, 5, keys, 2, 16),
    "a table": lambda keys: cross_attention(Draw(), 2, 5, keys, 2, 16, table=6),
    "keys and values": lambda keys: cross_attention_kvpacked(Draw(), 2, 5, keys, 2, 16),
    "everything": lambda keys: self_attention_qkvpacked(Draw(), 2, keys, 2, 16),
}
FIRST = {"none": "query", "keys and values": "query", "everything": "query_key_value"}
packings = pytest.mark.parametrize("packing", PACKINGS)


class Seen(TorchDispatchMode):
    """Dtypes of what PyTorch's attention is called with."""

    def __init__(self):
        super().__init__()
        self.dtypes = {}

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if "flash_attention" in operator.name():
            self.dtypes["backward" if "backward" in operator.name() else "forward"] = arguments[0].dtype
        return operator(*arguments, **(keywords or {}))


class Products(TorchDispatchMode):
    """Dtypes of batched products."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if operator.name().startswith("aten::bmm"):
            self.dtypes.add(arguments[0].dtype)
        return operator(*arguments, **(keywords or {}))


@pytest.fixture(params=["products", "fused"])
def form(request, monkeypatch):
    if request.param == "fused":
        monkeypatch.setattr(cpu, "MOST_SCORES", 0)
    return request.param


@pytest.mark.budget
@pytest.mark.parametrize("keys", [7, 67])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@packings
def test_keeps_to_the_budget(packing, dtype, keys, form):
    problem = PACKINGS[packing](keys)
    with Seen() as seen:
        Judge(problem, dtype, oracle_of(problem)).check(problem.by())
    assert seen.dtypes == ({"forward": dtype, "backward": torch.float32} if form == "fused" else {})


@pytest.mark.budget
@pytest.mark.parametrize("images", [1, 2, 3])
def test_chunks_of_images_keep_to_the_budget(images, monkeypatch):
    problem = cross_attention(Draw(), 5, 6, 7, 2, 16, table=9)
    monkeypatch.setattr(cpu_products, "CHUNK_SCORES", images * 4 * 2 * 6 * 7)
    Judge(problem, torch.bfloat16, oracle_of(problem)).check(problem.by())


@pytest.mark.budget
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of a flag that this leaves alone
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_16_bit_products_it_multiplies_in_float32(dtype):
    problem = PACKINGS["keys and values"](7)
    with torch.backends.mkldnn.flags(enabled=False):
        Judge(problem, dtype, oracle_of(problem)).check(problem.by())
        with Products() as products:
            solve(problem, problem.by(), dtype)
    assert products.dtypes == {torch.float32}


def test_few_scores_are_products_and_many_are_not(monkeypatch):
    x = torch.randn(2, 5, 96, dtype=torch.bfloat16, requires_grad=True)
    for most, fused in ((4 * 2 * 5 * 5, False), (4 * 2 * 5 * 5 - 1, True)):
        monkeypatch.setattr(cpu, "MOST_SCORES", most)
        with Seen() as seen:
            ck.self_attention_qkvpacked(x, 2)
        assert bool(seen.dtypes) == fused


def test_products_save_only_their_arguments():
    query, keys = (torch.randn(2, 5, width, dtype=torch.bfloat16, requires_grad=True) for width in (32, 64))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        ck.cross_attention_kvpacked(query, keys, 2)
    assert sorted(x.data_ptr() for x in saved) == sorted(x.data_ptr() for x in (query, keys))


@packings
def test_autocast_is_the_same_as_casting(packing, form):
    problem = PACKINGS[packing](7)

    def cast(**arguments):
        return problem.by()(**{n: t.bfloat16() if t.is_floating_point() else t for n, t in arguments.items()})

    under_autocast = solve(problem, problem.by(), torch.float32, autocast=torch.bfloat16)
    assert same(under_autocast, solve(problem, cast, torch.float32))


@packings
def test_compiled_it_is_the_same(packing, form):
    problem = PACKINGS[packing](7)
    compiled = torch.compile(problem.by(), backend="aot_eager", fullgraph=True)
    assert same(*(solve(problem, call, torch.bfloat16) for call in (compiled, problem.by())))


@pytest.mark.parametrize("images", [1, 2, 3])
@packings
def test_compiled_a_loop_over_images_is_one_operator(packing, images, monkeypatch):
    """A compiler would unroll it."""
    torch.compiler.reset()  # or a function that many tests compile is compiled no more
    problem = PACKINGS[packing](7)
    batch, queries = problem.leaves(torch.bfloat16)["query_ids" if packing == "a table" else FIRST[packing]].shape[:2]
    monkeypatch.setattr(cpu_products, "CHUNK_SCORES", images * 4 * 2 * queries * 7)
    counted = set()

    def count(graph, inputs):
        counted.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(problem.by(), backend=aot_autograd(fw_compiler=count), fullgraph=True)
    assert same(*(solve(problem, call, torch.bfloat16) for call in (compiled, problem.by())))
    ours = {f"crossmae_kernels.cpu_attention{name}.default" for name in ("", "_backward")}
    assert ours & counted == (ours if images < batch else set())
    assert any("bmm" in target for target in counted) == (images >= batch)


def test_a_backward_pass_under_autocast_is_the_same(form):
    problem = PACKINGS["everything"](7)

    def gradient(autocast):
        x = problem.arguments["query_key_value"].bfloat16().requires_grad_()
        out = ck.self_attention_qkvpacked(x, 2)
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            return torch.autograd.grad(out, x, torch.ones_like(out))[0]

    assert torch.equal(gradient(True), gradient(False))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_are_those_of_each_image_under_vmap(form):
    x = torch.randn(3, 7, 96, dtype=torch.bfloat16)

    def loss(image):
        return ck.self_attention_qkvpacked(image[None], 2).float().square().sum()

    together = torch.autograd.functional.jacobian(lambda x: torch.stack([*map(loss, x)]).sum(), x)
    assert torch.equal(vmap(grad(loss))(x), together)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(("batch", "tokens", "trained"), [(0, 5, True), (2, 5, False)])
def test_what_has_no_images_or_no_gradient_is_left_to_the_reference(impl, batch, tokens, trained, monkeypatch):
    monkeypatch.setattr(cpu, "cross_attention", None)
    x = torch.randn(batch, tokens, 96, dtype=torch.bfloat16, requires_grad=trained)
    assert ck.self_attention_qkvpacked(x, 2, impl=impl).shape == (batch, tokens, 32)


def test_a_table_of_which_no_row_is_asked_for():
    table, keys = (torch.randn(6, 32, dtype=torch.bfloat16, requires_grad=True), torch.randn(2, 5, 32).bfloat16())
    out = ck.cross_attention(table, keys, keys, 2, query_ids=torch.empty(2, 0, dtype=torch.int64))
    out.sum().backward()
    assert out.shape == (2, 0, 32)
    assert not table.grad.any()


def test_the_reference_is_left_alone():
    x = torch.randn(2, 5, 96, dtype=torch.bfloat16, requires_grad=True)
    with Seen() as seen:
        ck.self_attention_qkvpacked(x, 2, impl="reference").sum().backward()
    assert seen.dtypes == {"forward": torch.bfloat16, "backward": torch.bfloat16}


def test_an_exported_program_holds_pytorch_s_attention_for_any_batch(monkeypatch):
    class Attention(torch.nn.Module):
        def forward(self, x):
            return ck.self_attention_qkvpacked(x, 2)

    monkeypatch.setattr(cpu_products, "CHUNK_SCORES", 1)
    x = torch.randn(3, 5, 96, dtype=torch.bfloat16, requires_grad=True)
    program = torch.export.export(Attention(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert not any("crossmae_kernels" in str(node.target) for node in program.graph.nodes)
    assert program.module()(x[:2].detach()).shape == (2, 5, 32)
