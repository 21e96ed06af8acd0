"""The cost of a computation on this machine: interleaved timings, and memory kept for the backward pass."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def interleaved_medians(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    progress: Callable[[str, int], object] = lambda name, turn: None,
) -> dict[str, float]:
    """Median seconds of each contender.

    Every round runs all of them in turn, after one round of warm-up, so that a machine that slows down or has other
    work slows all alike. Waits for the accelerator where there is one. ``progress`` is told whose turn it is, and in
    which round (0: the warm-up), while no clock runs.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            progress(name, turn)
            wait_for_device()
            begun = time.perf_counter()
            run()
            wait_for_device()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


def wait_for_device() -> None:
    """Wait until the accelerator, if any, has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def bytes_saved_for_backward(run: Callable[[], object], module: nn.Module) -> int:
    """Bytes that autograd keeps from ``run`` until its backward pass, the module's own parameters and buffers aside.

    A storage that is kept several times, whole or in part, counts once, and whole: a part keeps all of it alive.
    """
    # Not the address: tensors without data, as of ``FakeTensorMode``, have none.
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # an identity may not be given out again while we count
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values())
