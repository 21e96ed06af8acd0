"""What a computation asks of PyTorch, recorded on tensors without data: its operators, their bytes and products.

An operator of this package is recorded with what it launches, kernels and the library's products; every other operator
stands for itself. Views cost nothing and are left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from crossmae_kernels.audit.recording import Launch, record
from crossmae_kernels.runtime.device import Limits
from crossmae_kernels.runtime.operators import NAMESPACE

# They move nothing: they allocate, or answer a question.
_FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "_unsafe_view",
         "promote_types")  # fmt: skip
# They read of their first tensor as much as they write.
_SELECTIONS = ("index", "gather", "embedding", "index_select")
# PyTorch's attention as a CPU has it, of which its counter has no formula, and by what name it is recorded.
_ATTENTION, ATTENTION = "_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention"


@dataclass
class Operation:
    """A call of an operator."""

    name: str
    """``mlp_backward`` of this package, ``mm`` of PyTorch."""
    ours: bool
    dtype: torch.dtype
    """In which it multiplies or adds: of its first tensor of floating-point numbers."""
    flops: int
    """Of its definition, two for each multiply-accumulate; 0 where nothing is multiplied."""
    bytes: int
    """Of the tensors that it reads and writes, each once."""
    operations: list["Operation"] = field(default_factory=list)
    """Operators of PyTorch that one of this package calls."""
    launches: list[Launch] = field(default_factory=list)
    """Kernels of this package."""


@contextmanager
def record_operations(limits: Limits) -> Iterator[list[Operation]]:
    """Record the operators that are called until the block ends, in order, as on a device with such ``limits``.

    Raises:
        RuntimeError: as ``record``.
    """
    with record(limits) as launches, _Recorder(launches) as recorder:
        yield recorder.operations


class _Recorder(TorchDispatchMode):
    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._launches = launches

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op.namespace == "prim":  # a question, such as for a tensor's device
            return op(*args, **kwargs)
        if op.namespace != NAMESPACE:
            with self:  # what is made of other operators counts as these
                out = op.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            out = op(*args, **kwargs)
            name = op._overloadpacket.__name__
            if not op.is_view and name not in _FREE:
                self.operations.append(_operation(op, args, kwargs, out))
            return out
        outer, self.operations = self.operations, []
        first = len(self._launches)
        with self:  # the launcher's own operators are seen, too
            out = op._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        inner, self.operations = self.operations, outer
        operation = _operation(op, args, kwargs, out)
        operation.operations, operation.launches = inner, self._launches[first:]
        self.operations.append(operation)
        return out


def _operation(op: Any, args: Any, kwargs: Any, out: Any) -> Operation:
    name = op._overloadpacket.__name__
    read, written = _tensors((args, kwargs)), _tensors(out)
    floating = next((tensor.dtype for tensor in (*read, *written) if tensor.is_floating_point()), torch.float32)
    wrote = sum(map(_bytes, written))
    sizes = [min(_bytes(tensor), wrote) if name in _SELECTIONS else _bytes(tensor) for tensor in read]
    return Operation(
        name.replace(_ATTENTION, ATTENTION),
        op.namespace == NAMESPACE,
        floating,
        _flops(op, name, args, kwargs, out),
        sum(sizes) + wrote,
    )


def _tensors(tree: Any) -> list[Tensor]:
    """Each tensor once."""
    found = [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return list({id(tensor): tensor for tensor in found}.values())


def _bytes(tensor: Tensor) -> int:
    """Of a tensor that was expanded, those that are there."""
    there = prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return there * tensor.element_size()


def _flops(op: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    if name == _ATTENTION:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if name == f"{_ATTENTION}_backward":
        return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
    formula = flop_registry.get(op._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
