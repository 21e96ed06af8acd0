"""What PyTorch's FLOP counter sees of each operator: the products of the reference, counted by PyTorch itself."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import crossmae_kernels as ck
from crossmae_kernels.cross_attention.reference import FEW_KEYS
from crossmae_kernels.runtime.dispatch import form_of

# Operators of which nothing is to be counted.
WITHOUT_PRODUCTS = {
    "fold_norm",
    "fold_norms",
    "fold_norm_backward",
    "gather_patches",
    "gather_patches_backward",
    "patch_loss",
    "patch_loss_backward",
}

B, Q, K, D, H, N, HEADS = 2, 3, 4, 16, 24, 5, 2
IDS = torch.tensor([[0, 4, 4], [3, 1, 0]])


def norm_linear(impl, x, weight, bias, activation=None):
    return ck.norm_linear(x, weight, bias, activation=activation, impl=impl)


def activated(impl, x, weight, bias):
    return norm_linear(impl, x, weight, bias, "gelu")


def linear_residual(impl, x, weight, bias, residual):
    return ck.linear_residual(x, weight, bias, residual, impl=impl)


def linear_residual_of_table(impl, x, weight, bias, residual):
    return ck.linear_residual(x, weight, bias, residual, IDS, impl=impl)


def mlp(impl, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, hidden="recompute"):
    return ck.mlp(x, None, None, fc1_weight, fc1_bias, fc2_weight, fc2_bias, hidden=hidden, impl=impl)


def mlp_that_saves(impl, *tensors):
    return mlp(impl, *tensors, hidden="save")


def attention(impl, query, key, value):
    return ck.cross_attention(query, key, value, HEADS, impl=impl)


def attention_of_table(impl, query, key, value):
    return ck.cross_attention(query, key, value, HEADS, query_ids=IDS, impl=impl)


def attention_kvpacked(impl, query, key_value):
    return ck.cross_attention_kvpacked(query, key_value, HEADS, impl=impl)


def attention_of_table_kvpacked(impl, query, key_value):
    return ck.cross_attention_kvpacked(query, key_value, HEADS, query_ids=IDS, impl=impl)


def attention_qkvpacked(impl, query_key_value):
    return ck.self_attention_qkvpacked(query_key_value, HEADS, impl=impl)


def mixing(impl, first, second, weight):
    return ck.mix_feature_maps([first, second], weight, impl=impl)


def mixing_alone(impl, first, second, weight):
    return ck.mix_feature_maps([first, second], weight, normalize=False, impl=impl)


def projection(impl, first, second, mixing_weight, bias, *weights):
    norms = torch.ones(len(weights), D), torch.zeros(len(weights), D)
    biases = [bias] * len(weights)
    return torch.stack(ck.project_feature_maps([first, second], mixing_weight, *norms, weights, biases, impl=impl))


BLOCKS = 3
LINEAR = ((B, Q, D), (H, D), (H,))
MLP = ((B, Q, D), (H, D), (H,), (D, H), (D,))
MAPS = ((B, K, D), (B, K, D), (BLOCKS, 2))
ATTENDED = 2 * B * Q * K * D
MIXED = B * K * D * 2 * BLOCKS

# A call, shapes of its tensors, and the multiply-accumulates of its forward pass.
CALLS = [
    (norm_linear, LINEAR, B * Q * D * H),
    (norm_linear, ((N, D), (H, D), (H,)), N * D * H),
    (activated, LINEAR, B * Q * D * H),
    (linear_residual, (*LINEAR, (B, Q, H)), B * Q * D * H),
    (linear_residual_of_table, (*LINEAR, (N, H)), B * Q * D * H),
    (mlp, MLP, 2 * B * Q * D * H),
    (mlp_that_saves, MLP, 2 * B * Q * D * H),
    (attention, ((B, Q, D), (B, K, D), (B, K, D)), ATTENDED),
    (attention_of_table, ((N, D), (B, K, D), (B, K, D)), ATTENDED),
    (attention_kvpacked, ((B, Q, D), (B, K, 2 * D)), ATTENDED),
    (attention_of_table_kvpacked, ((N, D), (B, K, 2 * D)), ATTENDED),
    (attention_qkvpacked, ((B, K, 3 * D),), 2 * B * K * K * D),
    (mixing, MAPS, MIXED),
    (mixing_alone, MAPS, MIXED),
    (projection, (*MAPS, (H,), *[(H, D)] * BLOCKS), MIXED + B * K * D * H * BLOCKS),
]  # fmt: skip
IDENTIFIERS = [f"{call.__name__}-{len(shapes[0])}d" for call, shapes, _ in CALLS]


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def macs_of_passes(call, impl, shapes, wanted, device="cpu", dtype=torch.float32):
    """Multiply-accumulates that PyTorch counts forward and backward, with gradients of the ``wanted`` tensors."""
    tensors = [
        torch.randn(shape, device=device, dtype=dtype).requires_grad_(want)
        for shape, want in zip(shapes, wanted, strict=True)
    ]
    with FlopCounterMode(display=False) as forward:
        out = call(impl, *tensors)
    with FlopCounterMode(display=False) as backward:
        if out.requires_grad:
            torch.autograd.grad(out, [t for t in tensors if t.requires_grad], torch.ones_like(out))
    return forward.get_total_flops() / 2, backward.get_total_flops() / 2


@pytest.mark.parametrize(("call", "shapes", "macs"), CALLS, ids=IDENTIFIERS)
def test_kernels_count_as_the_reference_does_and_the_closed_form_says(call, shapes, macs, device):
    everything = [True] * len(shapes)
    # On a GPU, PyTorch's formula of attention's backward pass has a fifth product.
    assert macs_of_passes(call, "reference", shapes, everything) == (macs, 2 * macs)
    assert macs_of_passes(call, "triton", shapes, everything, device) == (macs, 2 * macs)


@pytest.mark.parametrize(("call", "shapes", "macs"), CALLS, ids=IDENTIFIERS)
def test_gradients_that_nobody_wants_are_not_counted(call, shapes, macs):
    counted = set()
    # Ids are read, so those of a table cannot be fake.
    mode = nullcontext if "table" in call.__name__ else FakeTensorMode
    for first in product([False, True], repeat=min(len(shapes), 5)):
        wanted = first + first[-1:] * (len(shapes) - len(first))  # all blocks' weights, or none
        with mode():
            found = macs_of_passes(call, "triton", shapes, wanted)
            assert found == macs_of_passes(call, "reference", shapes, wanted), wanted
        counted.add(found[1])
    assert {0, 2 * macs} <= counted


@pytest.mark.parametrize(
    ("call", "form"),
    [
        (mlp, "single"),
        (mlp_that_saves, "single"),
        *product([norm_linear, activated, linear_residual, mlp, mlp_that_saves], ["tiled", "library"]),
    ],
)
def test_products_inside_of_a_form_are_counted_once(call, form, device):
    op = {activated: "norm_linear", mlp_that_saves: "mlp"}.get(call, call.__name__)
    _, shapes, macs = next(case for case in CALLS if case[0] is call)
    with form_of(op, form), form_of("mlp_backward", "library" if form == "library" else "tiled"):
        found = macs_of_passes(call, "triton", shapes, [True] * len(shapes), device, torch.float16)
    assert found == (macs, 2 * macs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_references_count_alike_with_few_keys_and_with_many(dtype):
    theirs = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward]
    for length in (FEW_KEYS, FEW_KEYS + 1):
        forward, backward = macs_of_passes(attention_qkvpacked, "reference", [(1, length, 3 * D)], [True], dtype=dtype)
        assert forward == 2 * length**2 * D
        # A PyTorch with a formula of its own may count the scores again.
        fused = theirs.__module__ == "torch.utils.flop_counter" and length > FEW_KEYS
        assert backward == (5 if fused else 4) * length**2 * D


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(
    ("call", "shapes"),
    [(call, shapes) for call, shapes, _ in CALLS if len(shapes[0]) == 3 and "table" not in call.__name__],
)
def test_nothing_is_counted_where_there_are_no_rows(call, shapes, impl, device):
    empty = [(0, *shape[1:]) if len(shape) == 3 else shape for shape in shapes]
    assert macs_of_passes(call, impl, empty, [True] * len(empty), device) == (0, 0)


def test_a_count_changes_nothing_and_names_the_operator(device):
    x, weight = torch.randn(B, Q, D, device=device), torch.randn(H, D, device=device)
    with FlopCounterMode(display=False) as counter:
        counted = ck.norm_linear(x, weight, impl="triton")
    assert torch.equal(counted, ck.norm_linear(x, weight, impl="triton"))
    assert counter.get_flop_counts()["Global"] == {torch.ops.crossmae_kernels.norm_linear: 2 * B * Q * D * H}


def test_every_operator_has_a_formula_or_no_products():
    prefix = "crossmae_kernels::"
    names = {
        name.removeprefix(prefix).split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix)
    }
    counted = {name for name in names if getattr(torch.ops.crossmae_kernels, name) in flop_registry}
    assert counted == names - WITHOUT_PRODUCTS
    assert names >= WITHOUT_PRODUCTS
