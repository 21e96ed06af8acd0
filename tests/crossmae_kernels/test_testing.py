"""The judge itself."""

import pytest
import torch

from crossmae_kernels.testing import Error, assert_within_budget, budget, error, poisoned_allocations


def test_errors_in_both_norms():
    exact = torch.tensor([0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert error(torch.tensor([3.0, 0.0, -1.0, 0.0]), exact) == Error(3.0, 2.5**0.5)
    assert error(torch.empty(0), torch.empty(0, dtype=torch.float64)) == Error(0.0, 0.0)
    with pytest.raises(ValueError, match="exact must be float64"):
        error(torch.zeros(1), torch.zeros(1))


def test_budget_is_twice_eager_and_one_rounding():
    exact = torch.tensor([4.0, -2.0], dtype=torch.float64)
    eager = torch.tensor([4.5, -2.0], dtype=torch.float16)
    allowed = budget(eager, exact)
    assert allowed.maximum == 1.0 + 4 / 2048
    assert allowed.rms == pytest.approx(2 * 0.125**0.5 + 10**0.5 / 2048, rel=1e-15)


def test_what_exceeds_the_budget_in_either_norm_or_is_nan_or_of_another_dtype_fails():
    exact = torch.linspace(-1, 1, 1000, dtype=torch.float64)
    eager = exact.half()
    assert_within_budget("same", eager, eager, exact)
    spike, drift, hole = eager.clone(), eager + 6e-4, eager.clone()
    spike[500] += 2e-3
    hole[3] = float("nan")
    for wrong in (spike, drift, hole, eager.float()):
        with pytest.raises(AssertionError, match="wrong"):
            assert_within_budget("wrong", wrong, eager, exact)


def test_fresh_memory_is_poisoned_and_the_setting_restored(device):
    old = torch.ones(4, device=device, dtype=torch.float16)
    with poisoned_allocations():
        fresh = [
            torch.empty(4, device=device),
            torch.empty_like(old),
            old.new_empty(3, 2),
            torch.empty_strided((2, 2), (1, 2), device=device),
        ]
        counts = torch.empty(3, dtype=torch.int32, device=device)
    assert all(t.isnan().all() for t in fresh)
    assert (counts == 2**31 - 1).all()
    assert not torch.are_deterministic_algorithms_enabled()
