"""Which of this package's operators are called."""

from contextlib import contextmanager

from torch.utils._python_dispatch import TorchDispatchMode


class _Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "crossmae_kernels":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@contextmanager
def names_of_operators():
    """Their names, in order, until the block ends."""
    with _Operators() as mode:
        yield mode.names
