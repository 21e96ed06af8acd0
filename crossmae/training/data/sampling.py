"""Which images form which step, for any number of processes."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from crossmae.training.data import randomness


class GlobalBatches(Sampler[list[tuple[int, int]]]):
    """Endless micro-batches ``[(epoch, index), ...]`` for one process, starting at any step.

    An epoch is one permutation of the images, given by seed and epoch. Its step s takes images s * B to (s + 1) * B,
    whatever the number of processes; an incomplete last batch is dropped. Each process takes its contiguous part of the
    batch, in ``accumulation`` micro-batches.

    Args:
        images: number of images in the data set.
        batch_size: B, the images of one step over all processes.
        seed: for the order.
        rank, world: index of this process, and the number of processes.
        accumulation: micro-batches per step and process.
        start_step: steps already done, over all epochs.

    Raises:
        ValueError: if the batch does not divide evenly or is larger than the data set.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        start_step: int = 0,
    ):
        if min(batch_size, world, accumulation) < 1:
            raise ValueError(
                f"batch_size, world and accumulation must be positive, got {batch_size}, {world} and {accumulation}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0 ... {world - 1}, got {rank}")
        if start_step < 0:
            raise ValueError(f"start_step must not be negative, got {start_step}")
        if batch_size % (world * accumulation):
            raise ValueError(
                f"batch_size must be divisible by {world} processes x {accumulation} micro-batches, got {batch_size}"
            )
        if batch_size > images:
            raise ValueError(f"batch_size must be at most the number of images {images}, got {batch_size}")
        self.images, self.batch_size, self.seed, self.start_step = images, batch_size, seed, start_step
        self.rank, self.world, self.accumulation = rank, world, accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.images // self.batch_size

    @property
    def micro_batch(self) -> int:
        """Images in one forward pass of one process."""
        return self.batch_size // (self.world * self.accumulation)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, step = divmod(self.start_step, self.steps_per_epoch)
        while True:
            order = randomness.order(self.seed, epoch).permutation(self.images)
            for batch in range(step, self.steps_per_epoch):
                first = batch * self.batch_size + self.rank * self.micro_batch * self.accumulation
                for micro in range(self.accumulation):
                    start = first + micro * self.micro_batch
                    yield [(epoch, index) for index in order[start : start + self.micro_batch].tolist()]
            epoch, step = epoch + 1, 0
