"""What holds for all tests."""

import torch

# Two pytest workers on two cores: one thread each, or they wait for each other.
torch.set_num_threads(1)
