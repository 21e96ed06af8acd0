"""Sums of feature maps in 16 bits on a CPU: judged as kernels are, and taken where they serve."""

import pytest
import torch
from contract import same
from oracles import oracle_of
from torch.autograd import forward_ad
from torch.func import grad, vmap

import crossmae_kernels as ck
from crossmae_kernels.feature_mixing import cpu
from crossmae_kernels.testing import Draw, Judge, solve
from crossmae_kernels.testing.problems import mix_feature_maps, project_feature_maps

IMAGES, TOKENS, MAPS, MIXES, WIDTH = 5, 3, 4, 6, 16

PROBLEMS = {
    "mixed": lambda: mix_feature_maps(Draw(), (IMAGES, TOKENS), MAPS, MIXES, WIDTH),
    "summed": lambda: mix_feature_maps(Draw(), (IMAGES, TOKENS), MAPS, MIXES, WIDTH, normalize=False),
    "projected": lambda: project_feature_maps(Draw(), (IMAGES, TOKENS), MAPS, MIXES, WIDTH, 8),
}
problems = pytest.mark.parametrize("problem", PROBLEMS)


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    monkeypatch.setattr(cpu, "MOST_STACKED", 0)


@pytest.fixture
def served(monkeypatch):
    """Chunks of images that were computed, forward and backward."""
    chunks, of_images = [], cpu._chunks

    def watched(images, *tensors):
        for chunk in of_images(images, *tensors):
            chunks.append(chunk[0].shape[1])
            yield chunk

    monkeypatch.setattr(cpu, "_chunks", watched)
    return chunks


@pytest.fixture
def leaves():
    def make(trained=("maps", "weight"), dtype=torch.bfloat16, images=IMAGES):
        maps = [torch.randn(images, TOKENS, WIDTH, dtype=dtype, requires_grad="maps" in trained) for _ in range(MAPS)]
        return maps, torch.randn(MIXES, MAPS, dtype=dtype, requires_grad="weight" in trained)

    return make


@pytest.mark.budget
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@problems
def test_chunks_of_images_keep_to_the_budget(problem, dtype, images, served, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_MAPS", images * 4 * MAPS * TOKENS * WIDTH)
    posed = PROBLEMS[problem]()
    Judge(posed, dtype, oracle_of(posed)).check(posed.by("auto"))
    assert sum(served) == 2 * IMAGES
    assert max(served) == images


@problems
def test_autocast_reads_maps_in_their_own_dtype(problem, served):
    """And its gradients are those of the reference under autocast, of which the weight's is rounded later here."""
    posed = PROBLEMS[problem]()
    ours, theirs = (
        solve(posed, posed.by(impl), torch.float32, autocast=torch.bfloat16) for impl in ("auto", "reference")
    )
    assert sum(served) == 2 * IMAGES
    assert ours.keys() == theirs.keys()
    for name, found in ours.items():
        assert found.dtype == theirs[name].dtype
        assert (found - theirs[name]).norm() <= 2**-7 * theirs[name].norm()


def test_a_backward_pass_under_autocast_is_the_same(leaves, served):
    def gradients(autocast):
        torch.manual_seed(0)
        maps, weight = leaves(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = cpu.sums(maps, weight)
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            return torch.autograd.grad(mixed, (*maps, weight), mixed)

    assert all(map(torch.equal, gradients(True), gradients(False)))
    assert sum(served) == 4 * IMAGES


def test_saves_only_its_arguments(leaves):
    maps, weight = leaves(dtype=torch.float32)
    saved = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x),
    ):
        cpu.sums(maps, weight)
    assert sorted(x.data_ptr() for x in saved) == sorted(x.data_ptr() for x in (*maps, weight))


@pytest.mark.parametrize("trained", ["maps", "weight"])
def test_only_what_is_asked_for_has_a_gradient(trained, leaves, served):
    maps, weight = leaves(trained)
    sum(x.sum() for x in cpu.sums(maps, weight)).backward()
    assert served
    assert [x.grad is not None for x in (*maps, weight)] == [trained == "maps"] * MAPS + [trained == "weight"]


def test_a_mix_that_nobody_used_has_a_gradient_of_zero(leaves, served):
    maps, weight = leaves()
    cpu.sums(maps, weight)[1].sum().backward()
    assert served
    assert [bool(row.any()) for row in weight.grad] == [False, True, *[False] * (MIXES - 2)]


@pytest.mark.parametrize(
    ("trained", "changes"),
    [((), {}), (("maps", "weight"), {"dtype": torch.float32}), (("maps", "weight"), {"images": 0})],
)
def test_others_are_left_to_the_reference(trained, changes, leaves, served):
    assert ck.mix_feature_maps(*leaves(trained, **changes)).shape[0] == MIXES
    assert not served


def test_what_a_cache_holds_is_stacked_at_once(leaves, served, monkeypatch):
    maps, weight = leaves()
    stack = 4 * MAPS * IMAGES * TOKENS * WIDTH
    for most, chunks in ((stack, 0), (stack - 1, IMAGES)):
        monkeypatch.setattr(cpu, "MOST_STACKED", most)
        cpu.sums(maps, weight)
        assert sum(served) == chunks


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # which forward mode uses
def test_transforms_compilers_and_the_reference_itself_take_the_reference(leaves, served):
    maps, weight = leaves()
    _, plain = leaves(())

    def loss(weight, maps=maps):
        return ck.mix_feature_maps(maps, weight, normalize=False).float().square().sum()

    # Not bit by bit: a transform's products need not add up in the same order.
    expected = torch.autograd.grad(loss(plain.requires_grad_()), plain)[0].float()
    assert sum(served) == 2 * IMAGES
    served.clear()
    plain = plain.detach()
    several = vmap(grad(loss))(plain[None])[0].float()
    assert (several - expected).norm() <= 2**-6 * expected.norm()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(plain, torch.ones_like(plain))
        derivative = forward_ad.unpack_dual(loss(dual)).tangent
    assert abs(derivative - expected.sum()) <= 2**-6 * expected.abs().sum()
    assert torch.compile(loss, backend="aot_eager", fullgraph=True)(weight).isfinite()
    ck.mix_feature_maps(maps, weight, impl="reference").float().sum().backward()
    assert not served


def test_a_second_derivative_is_refused(leaves):
    maps, weight = leaves()
    loss = cpu.sums(maps, weight)[0].square().sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@problems
def test_it_is_the_same_every_time(problem):
    posed = PROBLEMS[problem]()
    assert same(*(solve(posed, posed.by("auto"), torch.bfloat16) for _ in range(2)))
