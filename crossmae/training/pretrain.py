"""The pretraining loop."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossmae.model import MaskedAutoencoder
from crossmae.training.schedule import cosine_with_warmup


@dataclass(frozen=True)
class Pretraining:
    """What a pretraining run does: AdamW with betas (0.9, 0.95), cosine schedule with warm-up (MAE, appendix A.1)."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.05
    mask_ratio: float = 0.75
    prediction_ratio: float | None = None
    seed: int = 0


def pretrain(
    model: MaskedAutoencoder, images: Tensor, plan: Pretraining, after_step: Callable[[int, float], None]
) -> None:
    """Train ``model`` in place on images ``(N, C, H, W)``, reshuffled every epoch.

    ``after_step(step, loss)`` is called after every step, counted from 1. Batches and masks depend on the seed alone,
    so that models are compared on the same images in the same order.
    """
    if plan.batch_size > len(images):
        raise ValueError(f"batch_size must be at most the number of images {len(images)}, got {plan.batch_size}")
    generator = torch.Generator().manual_seed(plan.seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_with_warmup(step, plan.steps, plan.warmup_steps)
    )
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(1, plan.steps + 1):
        if len(order) < plan.batch_size:
            order = torch.randperm(len(images), generator=generator)
        batch, order = images[order[: plan.batch_size]], order[plan.batch_size :]
        noise = torch.rand(len(batch), model.config.patches, generator=generator)
        loss = model(batch, plan.mask_ratio, plan.prediction_ratio, noise=noise).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        after_step(step, float(loss.detach()))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for everything but biases and norms, the parameters of one dimension."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
