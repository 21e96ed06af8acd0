"""Which operators are called, and what all of them allocate."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Seen(TorchDispatchMode):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.note(func, args)
        return func(*args, **(kwargs or {}))


@contextmanager
def calls_of_operators():
    """This package's operators, each with its arguments, in order, until the block ends."""
    calls = []
    with _Seen(lambda func, args: calls.append((func, args)) if func.namespace == "crossmae_kernels" else None):
        yield calls


@contextmanager
def names_of_operators():
    """Names of this package's, in order, until the block ends."""
    names = []
    with _Seen(lambda func, _: names.append(func.name()) if func.namespace == "crossmae_kernels" else None):
        yield names


@contextmanager
def names_of_all_operators():
    """Also PyTorch's, but for those that merely view; what goes on inside of this package's is not seen."""
    names = []
    with _Seen(lambda func, _: None if func.is_view else names.append(func.name())):
        yield names


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
