"""The kernels against the definition in float64, with the error budget, wherever LayerNorm happens."""

import pytest
import torch
from problems import same
from seeds import generator

from crossmae_kernels.feature_mixing import config
from crossmae_kernels.testing import poisoned_allocations

# Images and tokens, maps, mixes, width, affine. In 16 bits a token stays on chip, in the backward pass without its
# upstream gradients (16 mixes, padded, of 1280), or does not (32 of 768). In float32 it stays with them (384), without
# them (768) or not at all (1280).
SHAPES = [
    ((2, 3), 13, 12, 24, True),
    ((1, 1), 33, 2, 24, False),
    ((1, 1), 40, 20, 24, True),
    ((1, 2), 13, 12, 384, False),
    ((1, 1), 40, 20, 384, False),
    ((1, 1), 13, 12, 768, False),
    ((1, 1), 25, 20, 768, False),
    ((1, 1), 13, 1, 1280, True),
    ((1, 1), 33, 12, 1280, False),
]


@pytest.mark.budget
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{'x'.join(map(str, s[0]))}-{s[1]}-to-{s[2]}-{s[3]}")
def test_normalised_mixes_and_all_gradients_keep_to_the_budget(problem, by, place, shape):
    problem(*shape).judge([by["kernels"]()], by["eager"](), by["oracle"](), *place)


@pytest.mark.budget
@pytest.mark.parametrize("shape", [((2, 3), 13, 12, 24), ((1, 1), 13, 12, 768), ((1, 1), 40, 20, 384)], ids=str)
def test_sums_alone(problem, by, place, shape):
    problem(*shape).judge([by["kernels"](False)], by["eager"](False), by["oracle"](False), *place)


@pytest.mark.budget
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("mixes", "width"), [(1, 24), (2, 384)])
def test_one_map(problem, by, place, mixes, width, normalize):
    task = problem((2, 3), 1, mixes, width)
    task.arguments["weight"] = torch.tensor([[1.5], [-0.75]])[:mixes]
    task.judge([by["kernels"](normalize)], by["eager"](normalize), by["oracle"](normalize), *place)


@pytest.mark.budget
@pytest.mark.parametrize("half", ["norm_weight", "norm_bias"])
def test_half_of_an_affine(problem, by, place, half):
    task = problem((2, 3), 5, 3, 24, affine=True)
    task.arguments[half] = None
    task.judge([by["kernels"]()], by["eager"](), by["oracle"](), *place)


@pytest.mark.budget
@pytest.mark.parametrize(
    ("mixes", "width", "normalize"), [(12, 130, True), (12, 1280, True), (20, 768, True), (12, 130, False)]
)
def test_maps_in_float32_beside_weights_in_16_bits(problem, by, device, mixes, width, normalize):
    task = problem((1, 1), 18, mixes, width)
    for compute in (torch.float16, *([torch.bfloat16] if device == "cuda" else [])):

        def eager(compute=compute, **arguments):
            # PyTorch leaves LayerNorm's result in float32 on some devices.
            return by["eager"](normalize)(**arguments).to(compute)

        solvers = [by["kernels"](normalize)], eager, by["oracle"](normalize)
        found = task.judge(*solvers, device, torch.float32, compute)
        assert found["out"].dtype == compute
        assert all(found[name].dtype == torch.float32 for name in found if name != "out")


@pytest.mark.budget
def test_a_large_mean_costs_no_precision(problem, by, place):
    task = problem((1, 2), 13, 12, 136)
    for index in range(13):
        task.arguments[f"map {index}"] += 100
    task.judge([by["kernels"]()], by["eager"](), by["oracle"](), *place)


@pytest.mark.budget
def test_tokens_of_very_different_size_share_a_program(problem, by, place):
    """Their gradients are summed in units of each one's deviation in turn."""
    task = problem((3, 6), 17, 3, 136)
    sizes = 2.0 ** torch.randint(-4, 5, (3, 6, 1), generator=generator())
    for index in range(17):
        task.arguments[f"map {index}"] *= sizes
    task.judge([by["kernels"]()], by["eager"](), by["oracle"](), *place)


@pytest.mark.budget
def test_rows_without_variance(problem, by, place):
    task = problem((1, 3), 4, 3, 136)
    # Sums are exact, so that nobody's rounding makes up a variance.
    task.arguments["weight"] = (8 * task.arguments["weight"]).round() / 8
    for index in range(4):
        task.arguments[f"map {index}"][:, 1] = index - 2.0
    found = task.judge([by["kernels"]()], by["eager"](), by["oracle"](), *place)
    assert not found["out"][:, :, 1].any()


@pytest.fixture(params=["on chip", "pass of its own", "none"])
def kernels(request, by, monkeypatch):
    """The kernels, with LayerNorm wherever sizes would have it in 16 bits."""
    if request.param != "on chip":
        monkeypatch.setattr(config, "MOST_VALUES", {2: 0, 4: 0})
    return by["kernels"](request.param != "none")


@pytest.fixture
def task(problem):
    """A small problem, of more maps than are multiplied at a time."""
    return problem((1, 2), 17, 2, 24)


def given(leaves):
    """Those that are there."""
    return {name: leaf for name, leaf in leaves.items() if leaf is not None}


def test_results_repeat_bitwise(task, kernels, device):
    assert same(*(task.solve(kernels, device, torch.float16) for _ in range(2)))


def test_a_second_backward_equals_the_first_and_leaves_saved_tensors_alone(task, kernels, device):
    leaves = given(task.leaves(device, torch.float16))
    before = [t.detach().clone() for t in leaves.values()]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append((t, t.clone())) or t, lambda t: t):
        out = kernels(**leaves)
    upstream = task.upstream.to(device, torch.float16)
    first = torch.autograd.grad(out, list(leaves.values()), upstream, retain_graph=True)
    second = torch.autograd.grad(out, list(leaves.values()), upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a.detach(), b) for a, b in zip(leaves.values(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in saved)
    assert torch.equal(upstream, task.upstream.to(device, torch.float16))


def test_frozen_arguments_get_no_gradient_and_change_no_other(task, kernels, device):
    everything = task.solve(kernels, device, torch.float16)
    maps = [f"map {index}" for index in range(17)]
    for wanted in (["map 1"], ["weight"], maps, ["map 0", "map 16", "weight"]):
        some = task.solve(kernels, device, torch.float16, frozen=set(task.arguments) - set(wanted))
        assert set(some) == {"out", *(f"d {name}" for name in wanted)}
        assert all(torch.equal(some[name], everything[name]) for name in some)


LAYOUTS = {
    "slice": lambda t: torch.cat([t, t], -1).chunk(2, -1)[1],
    "first dimension last": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "first two exchanged": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda t: t.repeat_interleave(2, 0)[::2],
    "every other channel": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "odd rows": lambda t: torch.nn.functional.pad(t, (1, 0))[..., 1:],
}


@pytest.mark.parametrize("layout", [*LAYOUTS, "another of one map"])
def test_layouts_change_nothing(problem, kernels, layout, device):
    task = problem((2, 2), 3, 3, 24)
    odd = [name for name, t in task.arguments.items() if t is not None]
    lay = LAYOUTS.get(layout)
    if lay is None:
        odd, lay = ["map 1"], LAYOUTS["first two exchanged"]

    def strided(**arguments):
        return kernels(**arguments | {name: lay(arguments[name]) for name in odd})

    assert same(*(task.solve(call, device, torch.float16) for call in (strided, kernels)))


def test_wide_loads_are_promised_only_where_every_map_allows_them(problem, device):
    from crossmae_kernels.feature_mixing.launch import _Call

    *maps, weight, _, _ = problem((2, 3), 2, 3, 24).leaves(device, torch.float16).values()

    def promised(*maps):
        return _Call([t.detach() for t in maps], weight.detach(), config.forward_tiles(3, 24, 2), True).constants()[
            "ALIGNED"
        ]

    odd = LAYOUTS["odd rows"]
    # The same layout, a few bytes on.
    memory = torch.empty(2 * 3 * 24 + 1, dtype=torch.float16, device=device)
    shifted = memory[1:].view(2, 3, 24)
    assert promised(*maps)
    assert not promised(maps[0], shifted)
    assert not promised(*map(odd, maps))
    # Layouts that differ are copied.
    assert promised(maps[0], odd(maps[1]))


@pytest.mark.parametrize("shared", [(0, 1, 2, 3), (1, 2), (0,)], ids=str)
def test_expanded_upstream_gradients(task, kernels, shared, device):
    leaves = given(task.leaves(device, torch.float16))
    shape = task.upstream.shape
    gradient = task.upstream.to(device, torch.float16)
    for dimension in shared:
        gradient = gradient.narrow(dimension, 0, 1)
    out = kernels(**leaves)
    expanded = torch.autograd.grad(out, list(leaves.values()), gradient.expand(shape), retain_graph=True)
    dense = torch.autograd.grad(out, list(leaves.values()), gradient.expand(shape).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


@pytest.mark.parametrize("rows", [(0, 7), (2, 0)], ids=str)
def test_no_rows(problem, kernels, device, rows):
    with poisoned_allocations():
        found = problem(rows, 3, 2, 24).solve(kernels, device, torch.float16)
    assert found["out"].shape == (2, *rows, 24)
    assert found["d map 2"].shape == (*rows, 24)
    assert not any(result.any() for result in found.values())


@pytest.mark.parametrize("far", ["image", "row", "upstream"])
def test_rows_beyond_2_to_the_31_are_found(problem, kernels, device, far):
    """The memory between the rows is reserved but never touched."""
    batch, tokens, mixes, width = *((3, 1) if far == "image" else (1, 3)), 3, 16
    task = problem((batch, tokens), 2, mixes, width)
    memory = torch.empty(2 * 2**30 + 2 * width, dtype=torch.float16, device=device)

    def spread(tensor, offset, dimension):
        strides = [width] * (tensor.dim() - 1) + [1]
        strides[dimension] = 2**30
        return memory[offset:].as_strided(tensor.shape, strides).copy_(tensor)

    arguments = {name: t.detach() for name, t in given(task.leaves(device, torch.float16)).items()}
    upstream = task.upstream.to(device, torch.float16)
    where = dict(arguments)
    if far == "upstream":
        upstream = upstream[:, :, :1].expand_as(upstream)
        distant = memory.as_strided(upstream.shape, (2**30, 0, 0, 1))
        distant[:, :, 0] = upstream[:, :, 0]
    else:
        distant = upstream
        where |= {f"map {i}": spread(arguments[f"map {i}"], i * width, int(far == "row")) for i in range(2)}

    def solve(arguments, upstream):
        leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
        out = kernels(**leaves)
        return [out, *torch.autograd.grad(out, list(leaves.values()), upstream)]

    near = solve(arguments, upstream.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(solve(where, distant), near, strict=True))
