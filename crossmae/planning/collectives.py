"""How long GPUs take to sum their gradients (DDP), or to gather and scatter a sharded model (FSDP2).

Bandwidth is counted as in nccl-tests: in a ring of n GPUs, each sends ``(n - 1) / n`` of the bytes for a gather or a
scatter, and twice that for an all-reduce, which is one after the other. The slowest link of the ring decides.
"""

import math
from dataclasses import dataclass

REACHED = 0.75
"""Share of a link's rate that collectives reach: on A100s nccl-tests shows about 230 of NVLink's 300 GB/s."""
HOP = 10e-6
"""Seconds that each doubling of the number of GPUs adds to a collective."""
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sends at a time; PyTorch's default."""


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
        """Seconds to gather ``size`` bytes of which each GPU holds a part; a reduce-scatter takes as long."""
        if self.gpus == 1:
            return 0.0
        return size * (self.gpus - 1) / self.gpus / self.bandwidth + HOP * math.log2(self.gpus)

    def all_reduce(self, size: float) -> float:
        """Seconds to sum ``size`` bytes on every GPU: a reduce-scatter and a gather."""
        return 2 * self.gather(size)


@dataclass(frozen=True)
class Exchange:
    """Communication of one optimizer step, in seconds."""

    total: float
    exposed: float
    """The part that does not overlap with computation."""


def data_parallel(ring: Ring, parameters: int, backward: float) -> Exchange:
    """DDP: float32 gradients, bucket by bucket, during the backward pass of the last micro-batch.

    The last bucket is full only when that pass ends, so it is always exposed.
    """
    size = 4 * parameters
    buckets = max(1, math.ceil(size / BUCKET))
    last = ring.all_reduce(size / buckets)
    total = buckets * last
    return Exchange(total, max(last, total - backward))


def sharded(ring: Ring, parameters: int, largest: int, forward: float, backward: float, micro_batches: int) -> Exchange:
    """FSDP2: gathers float32 parameters for each pass of each micro-batch, and scatters gradients in the last one.

    Each part is gathered while the one before computes. The gather of the first part and the scatter of the last are
    exposed; ``largest``, the number of parameters of the largest part, stands for both.
    """
    gather, one = ring.gather(4 * parameters), ring.gather(4 * largest)
    forwards = micro_batches * max(one, gather - forward)
    backwards = (micro_batches - 1) * max(0.0, gather - backward)
    last = max(one, 2 * gather - backward)
    return Exchange((2 * micro_batches + 1) * gather, forwards + backwards + last)
