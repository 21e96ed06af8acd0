"""Which operators are called, and what all of them allocate."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Operators(TorchDispatchMode):
    def __init__(self, wanted):
        super().__init__()
        self.wanted = wanted
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.wanted(func):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def names_of_operators():
    """Names of this package's, in order, until the block ends."""
    with _Operators(lambda func: func.namespace == "crossmae_kernels") as mode:
        yield mode.names


@contextmanager
def names_of_all_operators():
    """Also PyTorch's, but for those that merely view; what goes on inside of this package's is not seen."""
    with _Operators(lambda func: not func.is_view) as mode:
        yield mode.names


class _Allocations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                self.sizes.append(t.untyped_storage().nbytes())
        return result


@contextmanager
def allocated_bytes():
    """Sizes of all memory that PyTorch's operators allocate until the block ends, in order."""
    with _Allocations() as mode:
        yield mode.sizes
