"""Queries, keys and values side by side in one tensor, as a joint projection leaves them.

A tensor that holds several goes by the name of the first, and the others are None: ``key`` may hold keys and values,
``(B, K, 2 D)``, and ``query`` all three, ``(B, T, 3 D)``. Gradients come packed alike: kernels write the parts of one
tensor, where autograd would concatenate the gradients of slices.
"""

from torch import Tensor


def unpacked(query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each ``(B, ., D)``, as views."""
    if key is None:
        query, key, value = query.chunk(3, dim=-1)
    elif value is None:
        key, value = key.chunk(2, dim=-1)
    return query, key, value


def width_of(query: Tensor, key: Tensor | None) -> int:
    """D, of which a query that holds all three has three times as much."""
    return query.shape[-1] // 3 if key is None else query.shape[-1]


def parts(gradient: Tensor | None, count: int) -> list[Tensor | None]:
    """What lies side by side in a gradient, as views; None, ``count`` times, of one that is not wanted."""
    return [None] * count if gradient is None else list(gradient.chunk(count, dim=-1))
