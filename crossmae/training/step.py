"""One optimizer step, in which nothing waits for the device."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from crossmae.masking import Masking, draw_masking
from crossmae.model import MaskedAutoencoder
from crossmae.training.data.batches import Batch
from crossmae.training.devices import over_devices
from crossmae.training.plan import Plan


class PretrainingLoss(nn.Module):
    """Batch -> loss: a model in the form that data-parallel wrappers need, with tensors in and one tensor out."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, visible_ids: Tensor, predicted_ids: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` as they were read, uint8 or floating point, and a mask drawn for them -> the loss.

        The mask comes from outside, since ratios may change from epoch to epoch: to a compiler its sizes are dynamic,
        where each ratio would be a graph of its own, and after eight of them nothing would be compiled any more.
        """
        model = self.model
        if images.dtype != torch.uint8 or next(model.parameters()).dtype == torch.float64:
            images = model.normalized(images)
        return model(images, masking=Masking(visible_ids, predicted_ids, model.config.patches)).loss


class Stepper:
    """Model and optimizer on their devices, and the number of the next step, counted from 0.

    ``module`` has the parameters as they lie on this device, ``loss`` is the same module, wrapped, to call.
    """

    def __init__(self, model: MaskedAutoencoder, plan: Plan, fabric: Fabric) -> None:
        recipe = plan.recipe
        self.plan, self.fabric, self.step = plan, fabric, 0
        self.model = model.double() if recipe.precision == "float64" else model
        self.module = PretrainingLoss(self.model)
        called: Any = self.module
        if recipe.execution != "eager":
            called = torch.compile(called, mode="reduce-overhead" if recipe.execution == "graphs" else "default")
        self.loss = fabric.setup_module(called)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.module, recipe.weight_decay),
            lr=plan.peak_learning_rate,
            betas=recipe.betas,
            # A fused optimizer takes the loss scale of float16 out itself, after what is to be clipped.
            fused=recipe.precision != "float16" or recipe.clip_norm is None,
        )
        steps = fabric.setup_optimizers(self.optimizer)
        assert isinstance(steps, _FabricOptimizer)  # of one optimizer, one
        self._steps = steps
        self.loss.train()

    def train_step(self, batches: Iterator[Batch]) -> Tensor:
        """Take one optimizer step on as many batches as gradients are accumulated over; return this device's loss."""
        plan, fabric = self.plan, self.fabric
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate(self.step)
        if plan.config.drop_path:
            # A function of the step, different on every device: nothing to keep in a checkpoint.
            torch.manual_seed(((plan.recipe.seed * 1_000_003 + self.step) * 65_537 + fabric.global_rank) % 2**63)
        ratios = plan.ratios(self.step)
        losses: list[Tensor] = []
        for left in reversed(range(plan.accumulation)):
            batch = next(batches).to(fabric.device)
            if plan.recipe.execution == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            with fabric.no_backward_sync(self.loss, enabled=left > 0):
                mask = draw_masking(plan.recipe.masking, plan.config.grid, *ratios, batch.noise)
                loss = self.loss(batch.images, mask.visible_ids, mask.predicted_ids)
                fabric.backward(loss / plan.accumulation)
            if plan.recipe.execution == "graphs" and left and not losses:
                self._own_gradients()
            losses.append(loss.detach().clone())  # a CUDA graph writes the next one to the same place
        if plan.recipe.clip_norm is not None:
            fabric.clip_gradients(self.loss, self._steps, max_norm=plan.recipe.clip_norm, error_if_nonfinite=False)
        self._steps.step()
        self._steps.zero_grad()
        self.step += 1
        return torch.stack(losses).mean()

    def _own_gradients(self) -> None:
        """Copy gradients out of the memory that the next replay of the CUDA graph overwrites, for it to add to."""
        for p in self.module.parameters():
            if p.grad is not None:
                p.grad = p.grad.clone()

    def is_finite(self) -> bool:
        """Whether all parameters are finite on all devices; waits for the devices."""
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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for everything but biases and norms, the parameters of one dimension."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
