"""One optimizer step, without waiting for the device."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from crossmae.model import MaskedAutoencoder
from crossmae.training.data.batches import AnyBatch
from crossmae.training.devices import execution_on, over_devices
from crossmae.training.task import Task


class Stepper:
    """Model and optimizer on their devices, and the index of the next step, from 0.

    ``module`` has the parameters as stored on this device; ``loss`` is the same module in its wrappers, to be called;
    ``averaged`` is another with averages of the parameters, if the task keeps them.
    """

    def __init__(self, task: Task, fabric: Fabric) -> None:
        plan = task.plan
        recipe = plan.recipe
        self.task, self.plan, self.fabric, self.step = task, plan, fabric, 0
        self.module = task.module()
        if recipe.precision == "float64":
            self.module.double()
        self.model = self.module.model
        called: Any = self.module
        execution = execution_on(fabric.device, fabric.world_size, recipe.execution)
        self._graphs = execution == "graphs"
        if execution != "eager":
            called = torch.compile(called, mode="reduce-overhead" if self._graphs else "default")
        self.loss = fabric.setup_module(called)
        self.optimizer = torch.optim.AdamW(
            task.parameter_groups(self.module),
            lr=plan.peak_learning_rate,
            betas=recipe.betas,
            # A fused optimizer unscales float16 gradients itself, but only after clipping.
            fused=recipe.precision != "float16" or recipe.clip_norm is None,
        )
        steps = fabric.setup_optimizers(self.optimizer)
        assert isinstance(steps, _FabricOptimizer)  # one optimizer in, one out
        self._steps = steps
        self.loss.train()
        self.averaged = None
        if task.average is not None:
            from timm.utils import ModelEmaV3

            self.averaged = ModelEmaV3(self.module, task.average)

    def train_step(self, batches: Iterator[AnyBatch]) -> Tensor:
        """Take one optimizer step, accumulating gradients over its micro-batches; returns this device's loss."""
        plan, fabric = self.plan, self.fabric
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate(self.step) * group.get("lr_scale", 1.0)
        losses: list[Tensor] = []
        for left in reversed(range(plan.accumulation)):
            batch = next(batches).to(fabric.device)
            if not losses:
                # A function of the step, different on every device, so checkpoints need not store it. Seed only after
                # the first batch is loaded, as a starting loader draws a number.
                torch.manual_seed(((plan.recipe.seed * 1_000_003 + self.step) * 65_537 + fabric.global_rank) % 2**63)
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with fabric.no_backward_sync(self.loss, enabled=left > 0):
                loss = self.task.loss(self.loss, batch, self.step)
                fabric.backward(loss / plan.accumulation)
            if self._graphs and left and not losses:
                self._own_gradients()
            losses.append(loss.detach().clone())  # a CUDA graph reuses the memory for the next one
        if plan.recipe.clip_norm is not None:
            fabric.clip_gradients(self.loss, self._steps, max_norm=plan.recipe.clip_norm, error_if_nonfinite=False)
        self._steps.step()
        self._steps.zero_grad()
        self.step += 1
        if self.averaged is not None:
            self.averaged.update(self.module, self.step)
        return torch.stack(losses).mean()

    def _own_gradients(self) -> None:
        """Copy gradients out of memory that the CUDA graph's next replay overwrites, so that it adds to the copies."""
        for p in self.module.parameters():
            if p.grad is not None:
                p.grad = p.grad.clone()

    def is_finite(self) -> bool:
        """Whether all parameters on all devices are finite; waits for the devices."""
        local = [p.to_local() if isinstance(p, DTensor) else p for p in self.module.parameters()]
        bad = torch.stack([(~torch.isfinite(p.detach())).any() for p in local]).any()
        return not bool(over_devices(self.fabric, bad.float(), "sum"))

    def whole_model(self) -> MaskedAutoencoder | None:
        """The model with all of its parameters on the first device, None on the others; every device must call."""
        first = self.fabric.is_global_zero
        if not any(isinstance(p, DTensor) for p in self.module.parameters()):
            return self.model if first else None
        state = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not first:
            return None
        copy = MaskedAutoencoder(self.plan.config)
        copy.load_state_dict(state)
        return copy.to(self.fabric.device, next(self.model.parameters()).dtype)
