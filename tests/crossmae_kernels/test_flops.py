"""What PyTorch's FLOP counter sees of operators, beyond that they count as their references do."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import crossmae_kernels as ck

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_attention_on_a_cpu_counts_as_its_definition(impl, dtype):
    theirs = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward]
    length, width = 9, 16
    x = torch.randn(1, length, 3 * width, dtype=dtype, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = ck.self_attention_qkvpacked(x, 2, impl=impl)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(out, x, torch.ones_like(out))
    product = 2 * length**2 * width
    assert forward.get_total_flops() == 2 * product
    # A PyTorch with a formula of its own may count the scores again; in 16 bits they are computed again.
    fused = theirs.__module__ == "torch.utils.flop_counter"
    products = impl == "auto" and dtype == torch.bfloat16
    assert backward.get_total_flops() == (5 if fused or products else 4) * product


def test_a_count_changes_nothing_and_names_the_operator(device):
    x, weight = torch.randn(2, 3, 16, device=device), torch.randn(24, 16, device=device)
    with FlopCounterMode(display=False) as counter:
        counted = ck.norm_linear(x, weight, impl="triton")
    assert torch.equal(counted, ck.norm_linear(x, weight, impl="triton"))
    assert counter.get_flop_counts()["Global"] == {torch.ops.crossmae_kernels.norm_linear: 2 * 2 * 3 * 16 * 24}


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
