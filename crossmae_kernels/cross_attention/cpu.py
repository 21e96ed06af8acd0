"""16-bit attention on a CPU, for training: by matrix products, or by PyTorch's attention if scores are many.

PyTorch's attention on a CPU reaches a fifth of the rate of products of all heads at once. These need all scores, but
if few images are computed at a time, scores stay in cache. Forward and backward pass on two threads of a Zen 5,
bfloat16, ms a call:

============================= ======== =====
images, heads, width and size products fused
============================= ======== =====
8 of 16 x 32, 49 x 50              2.0   2.9
64 of 16 x 32, 49 x 50            13.8  23.7
8 of 12 x 64, 50 x 50              2.4   3.0
8 of 12 x 64, 197 x 197           19.0  27.0
2 of 12 x 64, 400 x 400           20.2  24.6
2 of 12 x 64, 577 x 577           58.4  47.6
============================= ======== =====

In float32 neither is faster throughout, so that is left to PyTorch.
"""

import torch
from torch import Tensor

from crossmae_kernels.cross_attention import cpu_fused, cpu_products
from crossmae_kernels.cross_attention.config import Packing

# Bytes of an image's scores in float32 from which PyTorch's attention is faster.
MOST_SCORES = 2**23


def serves(packed: tuple[Tensor | None, ...], query_ids: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether this is such a call, computed in ``dtype``; without a gradient there is nothing to gain.

    Nor is any in a program that is exported, which is to hold PyTorch's own operators.
    """
    if dtype.itemsize != 2 or packed[0] is None or packed[0].device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if torch.compiler.is_exporting():
        return False
    tensors = [x for x in packed if x is not None]
    whole = all(x.shape[0] > 0 and x.shape[1] > 0 for x in (*tensors, *([] if query_ids is None else [query_ids])))
    return whole and any(x.requires_grad for x in tensors)


def cross_attention(
    query: Tensor, key: Tensor | None, value: Tensor | None, packing: Packing, num_heads: int, scale: float | None
) -> Tensor:
    """See ``crossmae_kernels.cross_attention``; queries are gathered, and arguments assumed to be checked."""
    keys = query if key is None else key
    image_scores = 4 * num_heads * query.shape[1] * keys.shape[1]
    form = cpu_products if image_scores <= MOST_SCORES else cpu_fused
    return form.cross_attention(query, key, value, packing, num_heads, scale)
