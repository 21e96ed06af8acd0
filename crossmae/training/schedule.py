"""The learning rate over time."""

import math


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on the peak learning rate: linear over ``warmup`` steps, then half a cosine down to zero (MAE, A.1)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
