"""FLOP formulas of our operators for ``torch.utils.flop_counter.FlopCounterMode``.

PyTorch cannot see the products inside an operator, so each operator that multiplies matrices has a formula beside its
schema. Models are compared by these numbers, so they describe the model, not the implementation: they count the
products of the definition, with two FLOPs per multiply-accumulate.

- Forward: linear layers, attention and mixing, in any form. Norms, activations, gathers and losses are not counted, nor
  is folding a norm into weights, which the reference computes elementwise.
- Backward: for each product, one more per operand that needs a gradient, so twice the forward pass if all do. For
  attention that is four products. PyTorch's formulas for its fused GPU attention, which count the reference there, add
  a fifth: recomputing the scores. So does 16-bit attention on a CPU, whose products PyTorch sees one by one.
- Products that a kernel recomputes to save memory, of scores or the hidden layer, are not counted. Whatever PyTorch
  reruns, as in ``gradient_checkpointing``, is counted every time; it skips the last product of the reference's MLP,
  which is not a separate operator with kernels.

Autograd decides which gradients are needed. With kernels, a trained norm needs the gradient of the weight that it is
folded into; in the reference, that of the layer's input. So counts differ if the layer, or everything before it, is
frozen and the norm between them is not.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from math import prod
from types import ModuleType
from typing import TypeVar

from torch._ops import OpOverloadPacket

COUNTER = "torch.utils.flop_counter"

# Formulas get shapes instead of tensors.
Shape = Sequence[int]
Formula = TypeVar("Formula", bound=Callable[..., int])

_formulas: dict[OpOverloadPacket, Callable[..., int]] = {}


def flop_formula(operator: OpOverloadPacket) -> Callable[[Formula], Formula]:
    """Register the decorated function as the FLOPs of ``operator``.

    It takes the operator's arguments in the order of the schema, with shapes instead of tensors, and ``out_shape``, the
    shapes of the results. A formula already registered for the operator is kept.
    """

    def remember(formula: Formula) -> Formula:
        _formulas[operator] = formula
        if COUNTER in sys.modules:
            import torch.utils.flop_counter

            _register(torch.utils.flop_counter, operator)
        return formula

    return remember


def linear_flops(x: Shape, weight: Shape) -> int:
    """FLOPs of ``x weight^T``, with ``x`` ``(..., I)`` and ``weight`` ``(..., O, I)``; also of either gradient."""
    return 2 * prod(x) * weight[-2]


def _register(counter: ModuleType, operator: OpOverloadPacket) -> None:
    if operator not in counter.flop_registry:
        counter.register_flop_formula(operator)(_formulas[operator])


class _RegisterAtImport(MetaPathFinder):
    """Registers all formulas as soon as PyTorch's counter is imported, before it can be used.

    Importing the counter imports Triton, so importing it here would slow down every import of this package; but a
    counter only uses formulas that exist when it is created, so registering at an operator's first call would be too
    late.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the counter's module and register the formulas after its import; ignores other modules."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == COUNTER else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            for operator in _formulas:
                _register(module, operator)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _RegisterAtImport())
