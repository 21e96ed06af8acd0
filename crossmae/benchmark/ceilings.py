"""What a machine can do at most: the roofline that every time is set beside."""

from dataclasses import dataclass

import torch

from crossmae.measure import interleaved_times
from crossmae_kernels.runtime.cpu_linear import linear

ROUNDS = 10


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second of a copy, read and written, and FLOP a second of a square product, both as measured."""

    copy: float
    product: float

    def least(self, moved: float, flops: float) -> float:
        """Seconds that so many bytes and floating-point operations take at the least."""
        return max(moved / self.copy, flops / self.product)


def ceilings(device: torch.device, dtype: torch.dtype, size: int | None = None) -> Ceilings:
    """Time a copy and a product of ``(size, size)``, by default large enough to fill the device.

    The fastest round counts: the first ones on an idle CPU reached half of what later ones did.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    x, weight, vectors = (torch.randn(rows, size, device=device, dtype=dtype) for rows in (size, size, 16 * size))
    target = torch.empty_like(vectors)  # a clone on a CPU would count the system's work for new pages
    calls = {"copy": lambda: target.copy_(vectors), "product": lambda: x @ weight, "linear": lambda: linear(x, weight)}
    times = interleaved_times(calls, ROUNDS)
    products = times["product"] + times["linear"]  # PyTorch's product, or the faster one that this package found
    return Ceilings(2 * vectors.nbytes / min(times["copy"]), 2 * size**3 / min(products))
