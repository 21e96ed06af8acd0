"""Where kernel tests run: on the GPU where there is one, and in Triton's interpreter elsewhere."""

import pytest
import torch


def places(*dtypes):
    """Values of the fixture ``place``: a device and a dtype."""
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in dtypes}
    return [
        *(pytest.param(("cpu", dtype), id=f"interpreter-{name}") for dtype, name in names.items()),
        *(pytest.param(("cuda", dtype), id=f"cuda-{name}", marks=pytest.mark.gpu) for dtype, name in names.items()),
    ]


# For broken kernels. bfloat16's budget is the wider one of 16 bits, so what exceeds it is noticed in float16 too.
in_float32_and_bfloat16 = pytest.mark.parametrize("place", places(torch.float32, torch.bfloat16), indirect=True)
