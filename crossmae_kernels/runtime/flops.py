"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of our operators.

PyTorch cannot see the products inside of an operator, so each operator that multiplies matrices says beside its schema
what they come to. Models are compared by these numbers. They belong to the model, not to whoever
serves it: counted are the products of the definition, at two FLOPs for each multiply-accumulate.

- Forward: linear layers, attention and mixing, whatever the form. Norms, activations, gathers and losses are not
  counted, nor is folding a norm into weights, whose products the reference does element by element.
- Backward: for each product one more for each operand whose gradient is needed, twice the forward pass where all are.
  Of attention these are four products. PyTorch's formulas for its fused attention on a GPU, by which the reference is
  counted there, have a fifth: the scores, once more.
- What a kernel multiplies again in order to keep less, scores or the hidden layer, is not counted: it is the price of
  memory, not work of the model. What PyTorch runs again, as for ``gradient_checkpointing``, is counted as often as it
  runs; it leaves out the last product of the reference's MLP, which is no operator of its own with kernels.

Which gradients are needed is what autograd asks of an operator. With kernels a trained norm asks for the gradient of
the weight that it is folded into, where in the reference it asks for that of the layer's input: counts differ where
the layer, or all in front of it, is frozen and the norm between them is not.
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

# A formula gets a tensor's shape in its place.
Shape = Sequence[int]
Formula = TypeVar("Formula", bound=Callable[..., int])

_formulas: dict[OpOverloadPacket, Callable[..., int]] = {}


def flop_formula(operator: OpOverloadPacket) -> Callable[[Formula], Formula]:
    """Register the decorated function as the FLOPs of ``operator``.

    It takes the operator's arguments in the order of its schema, tensors as their shapes, and ``out_shape``, the
    shapes of what it returns. A formula that PyTorch or somebody else has registered for the operator stays.
    """

    def remember(formula: Formula) -> Formula:
        _formulas[operator] = formula
        if COUNTER in sys.modules:
            import torch.utils.flop_counter

            _register(torch.utils.flop_counter, operator)
        return formula

    return remember


def linear_flops(x: Shape, weight: Shape) -> int:
    """FLOPs of ``x weight^T``, with ``x`` ``(..., I)`` and ``weight`` ``(..., O, I)``; of either gradient too."""
    return 2 * prod(x) * weight[-2]


def _register(counter: ModuleType, operator: OpOverloadPacket) -> None:
    if operator not in counter.flop_registry:
        counter.register_flop_formula(operator)(_formulas[operator])


class _RegisterAtImport(MetaPathFinder):
    """Registers all formulas once PyTorch's counter is imported, before anybody can count with it.

    The counter imports Triton, and a counter counts by the formulas that are there when it is made: to import it here
    would make every import of this package pay for it, and by the first call of an operator it is too late.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The counter's module as others find it, with the formulas registered after its import; no other module."""
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
