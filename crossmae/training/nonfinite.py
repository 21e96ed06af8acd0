"""NaN detection: repeat the steps since the last good checkpoint, watching the one with the non-finite loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crossmae.training.data.batches import AnyBatch
from crossmae.training.devices import over_devices
from crossmae.training.step import Stepper


class NonFiniteLossError(RuntimeError):
    """A step's loss, or a parameter after it, is not finite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


def find_nonfinite(stepper: Stepper, batches: Iterator[AnyBatch], bad_step: int) -> str:
    """Repeat the steps from the current state of ``stepper`` to the bad one, and name the first non-finite tensor.

    Steps depend only on the recipe and the step number, so they repeat exactly; on an accelerator, up to the order of
    its sums. The step before the bad one is watched too, as its gradients may be to blame.
    """
    while stepper.step < bad_step - 1:
        stepper.train_step(batches)
    found: list[str] = []
    anywhere = False
    while stepper.step <= bad_step and not anywhere:
        step = stepper.step
        # Compiled code would ignore the hooks.
        with torch.compiler.set_stance("force_eager"), nonfinite_hooks(stepper.module, found):
            loss = stepper.train_step(batches)
        if not found and not _finite(loss):
            found.append("the loss itself (all modules' outputs are finite)")
        here = torch.tensor(float(bool(found)), device=loss.device)
        anywhere = bool(over_devices(stepper.fabric, here, "sum") > 0)
    if not anywhere:
        return "it did not happen again when the steps were repeated: suspect the machine or the order of sums"
    first = found[0] if found else "on another device"
    return f"the first tensor that is not finite is {first}, in step {step}"


@contextmanager
def nonfinite_hooks(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Within the context, record everything that is not finite: parameters, modules' outputs and their gradients.

    Waits for the device at every module. Names the innermost module.
    """
    found += [f"the parameter {name}" for name, tensor in model.named_parameters() if not _finite(tensor.detach())]

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def after_backward(gradient: Tensor) -> None:
            if not _finite(gradient):
                found.append(f"the gradient of the output of {name}")

        def after_forward(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, (tuple, list)) else [output]
            for tensor in (part for part in outputs if isinstance(part, Tensor)):
                if not _finite(tensor):
                    found.append(f"the output of {name}")
                if tensor.requires_grad:
                    tensor.register_hook(after_backward)

        return module.register_forward_hook(after_forward)

    handles = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
