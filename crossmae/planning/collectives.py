"""How long GPUs take to add up their gradients (DDP) or to gather and scatter a sharded model (FSDP2).

Bandwidth as nccl-tests counts it: of n GPUs in a ring each sends ``(n - 1) / n`` of the bytes for a gather or a
scatter, and twice that for an all-reduce, which is one after the other. What the ring's slowest link allows decides.
"""

import math
from dataclasses import dataclass

REACHED = 0.75
"""Of a link's rate, what collectives reach: on A100s nccl-tests shows some 230 of NVLink's 300 GB/s."""
HOP = 10e-6
"""Seconds that one more doubling of the GPUs adds to a collective."""
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sends at a time; PyTorch's own default."""


@dataclass(frozen=True)
class Ring:
    """GPUs that compute together, ``per_host`` on each host; rates in GB/s each way."""

    link: float
    """Between GPUs of a host."""
    network: float
    """Between hosts, for each GPU of a host."""
    gpus: int
    per_host: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second along the ring: rings through several hosts use all of their network cards."""
        across = self.network * self.per_host if self.gpus > self.per_host else math.inf
        return REACHED * min(self.link, across) * 1e9

    def gather(self, size: float) -> float:
        """Seconds until all have ``size`` bytes of which each holds a part; a scatter of sums takes as long."""
        if self.gpus == 1:
            return 0.0
        return size * (self.gpus - 1) / self.gpus / self.bandwidth + HOP * math.log2(self.gpus)

    def all_reduce(self, size: float) -> float:
        """Seconds until every GPU has the sums of ``size`` bytes: a scatter of sums and a gather."""
        return 2 * self.gather(size)


@dataclass(frozen=True)
class Exchange:
    """What one optimizer step sends, in seconds."""

    total: float
    exposed: float
    """What computing does not hide."""


def data_parallel(ring: Ring, parameters: int, backward: float) -> Exchange:
    """DDP: float32 gradients, a bucket after the other, while the last micro-batch's backward pass goes on.

    The last bucket is full when that pass ends, and nothing hides it.
    """
    size = 4 * parameters
    buckets = max(1, math.ceil(size / BUCKET))
    last = ring.all_reduce(size / buckets)
    total = buckets * last
    return Exchange(total, max(last, total - backward))


def sharded(ring: Ring, parameters: int, largest: int, forward: float, backward: float, micro_batches: int) -> Exchange:
    """FSDP2: float32 parameters are gathered for each pass of each micro-batch, gradients scattered in the last one.

    The next part is gathered while one computes. Nothing hides the gather of the first, nor the scatter of the last;
    ``largest`` is the number of parameters of the largest part, which stands for both.
    """
    gather, one = ring.gather(4 * parameters), ring.gather(4 * largest)
    forwards = micro_batches * max(one, gather - forward)
    backwards = (micro_batches - 1) * max(0.0, gather - backward)
    last = max(one, 2 * gather - backward)
    return Exchange((2 * micro_batches + 1) * gather, forwards + backwards + last)
