"""What holds for all tests."""

import os

import torch

# Two pytest workers on two cores: one thread each, or they wait for each other.
torch.set_num_threads(1)

# Where there is no GPU, kernels run in Triton's interpreter. Triton reads this when it is imported, which any test
# module may cause, so it is set before the first of them is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
