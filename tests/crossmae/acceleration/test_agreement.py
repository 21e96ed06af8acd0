"""How far apart results may be, by what products were computed in."""

import pytest
import torch

from crossmae.acceleration.agreement import agree
from crossmae.acceleration.observation import Observation


def test_under_autocast_float32_residuals_differ_as_products_of_16_bits_do():
    block, loss = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), torch.tensor(1.0)
    own = {(True,): Observation(loss, [("blocks.0", block)])}
    ours = {(True,): Observation((loss,), [("blocks.0", block * (1 + 5e-4))])}
    assert agree(own, ours, ("loss",), torch.bfloat16)
    with pytest.raises(ValueError, match=r"the output of blocks.0 differs from ours by 5.0e-04 .* 1e-04 is allowed"):
        agree(own, ours, ("loss",), None)
