"""Gradient of a gather: rows summed by the id they were gathered with, in an order that never changes."""

import torch
from torch import Tensor


def segmented_sum(rows: Tensor, ids: Tensor, segments: int) -> Tensor:
    """``out[n] = sum of rows[i] over all i with ids[i] == n``, as ``index_add`` on zeros but deterministic.

    The stable sort of the ids is the inverse index: each segment's rows in ascending order. One program then adds
    up one segment in float32, so there are no atomics, and nothing waits for the host.

    Args:
        rows: ``(R, D)``, contiguous.
        ids: int64 or int32 ``(R,)``; a row whose id is not in ``[0, segments)`` is left out.
        segments: N.

    Returns:
        ``(N, D)`` in the dtype of the rows.
    """
    from crossmae_kernels.common.segmented_sum import kernels

    ascending, order = ids.sort(stable=True)
    bounds = torch.arange(segments + 1, device=ids.device, dtype=ids.dtype)
    return kernels.segmented_sum(rows, order, torch.searchsorted(ascending, bounds))
