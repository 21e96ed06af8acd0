"""The kernels against the definition in float64, with the error budget, wherever LayerNorm happens."""

import pytest
import torch
from contract import same
from oracles import oracle_of
from seeds import generator, seeded

import crossmae_kernels as ck
from crossmae_kernels.feature_mixing import config
from crossmae_kernels.testing import Draw, Judge, solve
from crossmae_kernels.testing.problems import mix_feature_maps

# Images and tokens, maps, mixes, width, affine. In 16 bits a token stays on chip, in the backward pass without its
# upstream gradients (16 mixes, padded, of 1280), or does not (32 of 768). In float32 it stays with them (384), without
# them (768) or not at all (1280).
SHAPES = [
    ((2, 2), 13, 12, 24, True),
    ((1, 1), 33, 2, 24, False),
    ((1, 1), 40, 20, 24, True),
    ((1, 2), 13, 12, 384, False),
    ((1, 1), 40, 20, 384, False),
    ((1, 1), 13, 12, 768, False),
    ((1, 1), 25, 20, 768, False),
    ((1, 1), 13, 1, 1280, True),
    ((1, 1), 33, 12, 1280, False),
]


EPS = 1e-3


def judge(problem, dtype, **how):
    return Judge(problem, dtype, oracle_of(problem), **how).check(problem.by("triton"))


def changed(problem, change):
    """With each map as ``change`` makes it from its index and itself."""
    return problem.having(maps=[change(index, each) for index, each in enumerate(problem.arguments["maps"])])


@pytest.mark.budget
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{'x'.join(map(str, s[0]))}-{s[1]}-to-{s[2]}-{s[3]}")
def test_normalised_mixes_and_all_gradients_keep_to_the_budget(place, shape):
    device, dtype = place
    judge(mix_feature_maps(Draw(seeded(), device), *shape, eps=EPS), dtype)


@pytest.mark.budget
@pytest.mark.parametrize("shape", [((2, 3), 13, 12, 24), ((1, 1), 13, 12, 768), ((1, 1), 40, 20, 384)], ids=str)
def test_sums_alone(place, shape):
    device, dtype = place
    judge(mix_feature_maps(Draw(seeded(), device), *shape, normalize=False), dtype)


@pytest.mark.budget
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("mixes", "width"), [(1, 24), (2, 384)])
def test_one_map(place, mixes, width, normalize):
    device, dtype = place
    problem = mix_feature_maps(Draw(seeded(), device), (2, 2), 1, mixes, width, normalize=normalize, eps=EPS)
    weight = torch.tensor([[1.5], [-0.75]], dtype=torch.float64, device=device)[:mixes]
    judge(problem.having(weight=weight), dtype)


@pytest.mark.budget
@pytest.mark.parametrize("half", ["norm_weight", "norm_bias"])
def test_half_of_an_affine(place, half):
    device, dtype = place
    judge(
        mix_feature_maps(Draw(seeded(), device), (1, 2), 5, 3, 24, affine=True, eps=EPS).having(**{half: None}), dtype
    )


@pytest.mark.budget
@pytest.mark.parametrize(
    ("mixes", "width", "normalize"), [(12, 130, True), (12, 1280, True), (20, 768, True), (12, 130, False)]
)
def test_maps_in_float32_beside_weights_in_16_bits(device, mixes, width, normalize):
    problem = mix_feature_maps(Draw(seeded(), device), (1, 1), 18, mixes, width, normalize=normalize, eps=EPS)
    for compute in (torch.float16, torch.bfloat16):

        def eager(compute=compute, **arguments):
            # PyTorch leaves LayerNorm's result in float32 on some devices.
            return problem.by("reference")(**arguments).to(compute)

        found = judge(problem, torch.float32, eager=eager, autocast=compute)
        assert found["out"].dtype == compute
        assert all(found[name].dtype == torch.float32 for name in found if name != "out")


@pytest.mark.budget
def test_a_large_mean_costs_no_precision(place):
    device, dtype = place
    problem = mix_feature_maps(Draw(seeded(), device), (1, 2), 13, 12, 136, eps=EPS)
    judge(changed(problem, lambda _, each: each + 100), dtype)


@pytest.mark.budget
def test_tokens_of_very_different_size_share_a_program(place):
    """Their gradients are summed in units of each one's deviation in turn."""
    device, dtype = place
    problem = mix_feature_maps(Draw(seeded(), device), (3, 6), 17, 3, 136, eps=EPS)
    sizes = 2.0 ** torch.randint(-4, 5, (3, 6, 1), generator=generator()).to(device)
    judge(changed(problem, lambda _, each: each * sizes), dtype)


@pytest.mark.budget
def test_rows_without_variance(place):
    device, dtype = place
    problem = mix_feature_maps(Draw(seeded(), device), (1, 3), 4, 3, 136, eps=EPS)
    # Sums are exact, so that nobody's rounding makes up a variance.
    problem = problem.having(weight=(8 * problem.arguments["weight"]).round() / 8)
    constant = torch.tensor([[False], [True], [False]], device=device)
    found = judge(changed(problem, lambda index, each: each.where(~constant, torch.tensor(index - 2.0))), dtype)
    assert not found["out"][:, :, 1].any()


@pytest.fixture(params=["on chip", "pass of its own", "none"])
def normalize(request, monkeypatch):
    """Whether to normalise; LayerNorm is wherever sizes would have it in 16 bits."""
    if request.param == "pass of its own":
        monkeypatch.setattr(config, "MOST_VALUES", {2: 0, 4: 0})
    return request.param != "none"


LAYOUTS = {
    "first two exchanged": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every other channel": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "odd rows": lambda t: torch.nn.functional.pad(t, (1, 0))[..., 1:],
}


@pytest.mark.parametrize("layout", [*LAYOUTS, "another of one map"])
def test_layouts_of_maps_change_nothing(normalize, layout, device):
    # More maps than are multiplied at a time.
    problem = mix_feature_maps(Draw(device=device), (2, 1), 17, 2, 24, normalize=normalize)
    lay = LAYOUTS.get(layout, LAYOUTS["odd rows"])

    def strided(maps, **others):
        return problem.by("triton")(
            [lay(each) if layout in LAYOUTS or each is maps[1] else each for each in maps], **others
        )

    assert same(*(solve(problem, call, torch.float16) for call in (strided, problem.by("triton"))))


def test_wide_loads_are_promised_only_where_every_map_allows_them(device):
    from crossmae_kernels.feature_mixing.kernels import _Call

    leaves = mix_feature_maps(Draw(device=device), (2, 3), 2, 3, 24).leaves(torch.float16)
    maps, weight = [t.detach() for t in leaves["maps"]], leaves["weight"].detach()

    def promised(*maps):
        return _Call(maps, weight, config.forward_tiles(3, 24, 2), True).constants()["ALIGNED"]

    odd = LAYOUTS["odd rows"]
    # The same layout, a few bytes on.
    memory = torch.empty(2 * 3 * 24 + 1, dtype=torch.float16, device=device)
    shifted = memory[1:].view(2, 3, 24)
    assert promised(*maps)
    assert not promised(maps[0], shifted)
    assert not promised(*map(odd, maps))
    # Layouts that differ are copied.
    assert promised(maps[0], odd(maps[1]))


@pytest.mark.parametrize("shared", [(0,), (1, 2), (0, 1, 2, 3)], ids=str)
def test_expanded_upstream_gradients(normalize, shared, device):
    problem = mix_feature_maps(Draw(device=device), (2, 1), 17, 2, 24, normalize=normalize)
    leaves = problem.leaves(torch.float16)
    out = problem.by("triton")(**leaves)
    upstream = torch.randn_like(out)
    for dimension in shared:
        upstream = upstream.narrow(dimension, 0, 1)
    trained = [*leaves["maps"], leaves["weight"]]
    expanded = torch.autograd.grad(out, trained, upstream.expand(out.shape), retain_graph=True)
    dense = torch.autograd.grad(out, trained, upstream.expand(out.shape).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


@pytest.mark.parametrize("far", ["image", "row", "upstream"])
def test_rows_beyond_2_to_the_31_are_found(normalize, device, far):
    """The memory between the rows is reserved but never touched."""
    batch, tokens, mixes, width = *((3, 1) if far == "image" else (1, 3)), 3, 16
    leaves = mix_feature_maps(Draw(device=device), (batch, tokens), 2, mixes, width).leaves(torch.float16)
    memory = torch.empty(2 * 2**30 + 2 * width, dtype=torch.float16, device=device)

    def spread(tensor, offset, dimension):
        strides = [width] * (tensor.dim() - 1) + [1]
        strides[dimension] = 2**30
        return memory[offset:].as_strided(tensor.shape, strides).copy_(tensor)

    maps = [t.detach() for t in leaves["maps"]]
    upstream = torch.randn(mixes, batch, tokens, width, device=device).half()
    where, distant = maps, upstream
    if far == "upstream":
        upstream = upstream[:, :, :1].expand_as(upstream)
        distant = memory.as_strided(upstream.shape, (2**30, 0, 0, 1))
        distant[:, :, 0] = upstream[:, :, 0]
    else:
        where = [spread(each, index * width, int(far == "row")) for index, each in enumerate(maps)]

    def results(maps, upstream):
        trained = [t.detach().requires_grad_() for t in (*maps, leaves["weight"])]
        out = ck.mix_feature_maps(trained[:-1], trained[-1], normalize=normalize, impl="triton")
        return [out, *torch.autograd.grad(out, trained, upstream)]

    near = results(maps, upstream.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(results(where, distant), near, strict=True))
