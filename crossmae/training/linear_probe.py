"""The papers' linear probe, a linear layer on frozen features trained by LARS, optionally with attentive pooling."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from crossmae.training.plan import cosine_with_warmup
from crossmae.training.probe import LabelledFeatures

EPOCHS, LEAST_STEPS = 90, 1000  # the papers' 90 epochs are 7,000 steps on ImageNet
WARMUP = 10 / 90  # of the steps (MAE, table 10)
MOMENTUM, TRUST = 0.9, 0.001
EPSILON = 1e-6


@dataclass(frozen=True)
class ProbeRecipe:
    """How to train a probe: as in MAE's table 10 and CrossMAE's appendix, but on features without augmentation.

    Args:
        epochs: passes over the features; by default 90, or more if these would be less than 1,000 steps.
        batch_size: features per step; all of them if there are fewer.
        base_learning_rate: peak for 256 features. The peak is this x batch size / 256 even if there are fewer
            features: the length of a LARS step depends on the weights, not on the gradient.
        seed: for initialization and order.
    """

    epochs: int | None = None
    batch_size: int = 16384
    base_learning_rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "base_learning_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in [0, 2**63), got {self.seed}")

    def steps(self, features: int) -> tuple[int, int]:
        """Number of steps in total and per epoch."""
        per_epoch = features // min(self.batch_size, features)
        return max(EPOCHS * per_epoch, LEAST_STEPS) if self.epochs is None else self.epochs * per_epoch, per_epoch


class LinearProbe(nn.Module):
    """Features ``(B, E)`` -> logits ``(B, classes)``: batch norm without affine parameters, then a linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=EPSILON, affine=False)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        return self.head(self.norm(features))


class AttentiveProbe(LinearProbe):
    """A linear probe on attentive pooling: one learned query attends to all tokens ``(B, T, E)`` (arXiv 2202.03026)."""

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__(width, classes)
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.token_norm = nn.LayerNorm(width, eps=EPSILON)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        tokens = self.token_norm(features)
        pooled, _ = self.attention(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
        return super().forward(pooled[:, 0])


def fitted(probe: LinearProbe, train: LabelledFeatures, recipe: ProbeRecipe, device: torch.device | str) -> LinearProbe:
    """Train a probe on frozen features; returns it on ``device`` in evaluation mode. The features stay on theirs.

    LARS (arXiv 1708.03888) scales the steps of weights, not of biases; as in the papers, there is no weight decay.
    """
    from timm.optim import Lars

    probe = probe.to(device).train()
    weights = [p for p in probe.parameters() if p.ndim > 1]
    others = [p for p in probe.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "always_adapt": True}, {"params": others}]
    optimizer = Lars(groups, momentum=MOMENTUM, trust_coeff=TRUST)
    count = len(train.labels)
    batch = min(recipe.batch_size, count)
    steps, per_epoch = recipe.steps(count)
    peak = recipe.base_learning_rate * recipe.batch_size / 256
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in tqdm(range(steps), desc="attention" if isinstance(probe, AttentiveProbe) else "linear", unit="step"):
        if step % per_epoch == 0:
            order = torch.randperm(count, generator=generator)
        chosen = order[step % per_epoch * batch :][:batch]
        for group in optimizer.param_groups:
            group["lr"] = peak * cosine_with_warmup(step, steps, round(WARMUP * steps))
        logits = probe(train.values[chosen].to(device).float())
        loss = F.cross_entropy(logits, train.labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return probe.eval()


@torch.no_grad()
def logits(probe: LinearProbe, test: LabelledFeatures, batch: int = 1024) -> Tensor:
    """Logits of all features ``(N, classes)``, float32, on the CPU."""
    device = next(probe.parameters()).device
    return torch.cat([probe(part.to(device).float()).cpu() for part in test.values.split(batch)])
