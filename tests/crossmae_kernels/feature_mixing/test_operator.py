"""The operator inside of PyTorch: autocast, memory, refusals."""

import pytest
import torch
from operators import allocated_bytes, names_of_operators

import crossmae_kernels as ck
from crossmae_kernels.testing import Draw
from crossmae_kernels.testing.problems import mix_feature_maps

MAPS, MIXES, WIDTH = 3, 2, 24

# Mixes and width that in 16 bits are normalised on chip, and where that is a pass of its own.
HELD, NOT_HELD = (12, 1280), (20, 768)


@pytest.fixture
def maps_and_weight(device):
    """The arguments without an affine, as leaves."""

    def make(dtype, rows=(1, 3), maps=MAPS, mixes=MIXES, width=WIDTH):
        leaves = mix_feature_maps(Draw(device=device), rows, maps, mixes, width).leaves(dtype)
        return leaves["maps"], leaves["weight"]

    return make


def test_one_operator_per_call(maps_and_weight):
    maps, weight = maps_and_weight(torch.float32)
    with names_of_operators() as forward:
        out = ck.mix_feature_maps(maps, weight, impl="triton")
    with names_of_operators() as backward:
        out.sum().backward()
    assert forward == ["crossmae_kernels::mix_feature_maps"]
    assert backward == ["crossmae_kernels::mix_feature_maps_backward"]


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_weights_and_leaves_the_maps_as_they_are(maps_and_weight, device, compute, monkeypatch):
    from crossmae_kernels.feature_mixing import kernels

    arrived, original = [], kernels.forward

    def forward(maps, weight, *others):
        arrived.extend([*(t.data_ptr() for t in maps), weight.dtype])
        return original(maps, weight, *others)

    monkeypatch.setattr(kernels, "forward", forward)
    maps, weight = maps_and_weight(torch.float32)
    with torch.autocast(device, compute):
        out = ck.mix_feature_maps(maps, weight, impl="triton")
    assert arrived == [*(t.data_ptr() for t in maps), compute]
    assert out.dtype == compute


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("mixes", "width"), [HELD, NOT_HELD])
def test_saves_maps_and_statistics_and_the_mixes_only_for_a_pass_of_layernorms_own(
    maps_and_weight, mixes, width, normalize
):
    maps, weight = maps_and_weight(torch.float16, (1, 2), MAPS, mixes, width)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = ck.mix_feature_maps(maps, weight, normalize=normalize, impl="triton")
    inputs = [t.data_ptr() for t in (*maps, weight)]
    own = [t for t in saved if t.data_ptr() not in inputs]
    assert len(saved) - len(own) == MAPS + 1
    rows = [t for t in own if t.numel() and t.dtype != torch.float32]
    assert [t.data_ptr() for t in rows] == ([out.data_ptr()] if normalize and (mixes, width) != HELD else [])
    statistics = sum(t.numel() for t in own if t.dtype == torch.float32)
    assert statistics <= 2 * mixes * 2
    assert bool(statistics) == normalize


@pytest.mark.parametrize(("mixes", "width", "normalize"), [(*HELD, True), (*NOT_HELD, True), (*HELD, False)])
def test_the_maps_are_never_stacked(maps_and_weight, mixes, width, normalize):
    # Beneath the operator, to see what it allocates.
    from crossmae_kernels.feature_mixing import kernels

    maps, weight = maps_and_weight(torch.float16, (1, 1), 33, mixes, width)
    maps, weight = [t.detach() for t in maps], weight.detach()
    upstream = torch.randn(mixes, 1, 1, width, device=weight.device).half()
    one = maps[0].numel() * 2
    # Partial sums of the weights' gradient, one for each panel, and their sum; statistics are less.
    few = 8 * 4 * weight.numel()
    assert few < len(maps) * one / 2
    with allocated_bytes() as forward:
        out, means, rstds = kernels.forward(maps, weight, 1e-6, normalize)
    assert sum(forward) <= (2 if normalize and (mixes, width) == NOT_HELD else 1) * mixes * one + few
    kept = out if normalize and (mixes, width) != HELD else None
    with allocated_bytes() as backward:
        kernels.backward(upstream, maps, weight, kept, means, rstds, normalize, [False, True])
    assert sum(backward) <= (0 if kept is None else mixes * one) + few
    with allocated_bytes() as backward:
        kernels.backward(upstream, maps, weight, kept, means, rstds, normalize, [True, False])
    # The gradients themselves.
    assert sum(backward) <= (len(maps) + (0 if kept is None else mixes)) * one


@pytest.mark.parametrize(("mixes", "width", "normalize"), [(*HELD, True), (*NOT_HELD, True), (*HELD, False)])
def test_gradients_of_maps_share_no_memory(maps_and_weight, mixes, width, normalize):
    """So the encoder's backward pass frees each as soon as it has used it."""
    maps, weight = maps_and_weight(torch.float16, (1, 1), 18, mixes, width)
    out = ck.mix_feature_maps(maps, weight, normalize=normalize, impl="triton")
    gradients = torch.autograd.grad(out, maps[1:], torch.randn_like(out))
    assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == len(gradients)
    assert all(gradient.untyped_storage().nbytes() == width * 2 for gradient in gradients)


def test_rows_too_wide_and_other_dtypes_go_to_the_reference(maps_and_weight, device):
    maps, weight = maps_and_weight(torch.float64)
    with pytest.raises(
        RuntimeError, match=r"kernels support float32, float16, bfloat16, but these tensors are torch.float64"
    ):
        ck.mix_feature_maps(maps, weight, impl="triton")
    with pytest.raises(RuntimeError, match=r"rows of up to 16384, but these have 16385"):
        ck.mix_feature_maps([torch.empty(1, 1, 16385, device=device)], torch.empty(1, 1, device=device), impl="triton")
