"""The cost of a computation on this machine: interleaved timings, and memory saved for the backward pass."""

import gc
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
    """Median seconds of each contender; see ``interleaved_times``."""
    times = interleaved_times(contenders, rounds, progress)
    return {name: statistics.median(measured) for name, measured in times.items()}


def interleaved_times(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    progress: Callable[[str, int], object] = lambda name, turn: None,
) -> dict[str, list[float]]:
    """Seconds of each contender in every round.

    After one warm-up round, every round runs all of them in turn, so that throttling or other load affects all alike.
    Waits for the accelerator, if any. ``progress`` is called with the contender's name and the round (0: warm-up),
    outside of the timing.
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
    return {name: measured[1:] for name, measured in times.items()}


def wait_for_device() -> None:
    """Wait until the accelerator, if any, has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def peak_memory(run: Callable[[], object]) -> int:
    """Most bytes allocated on the current CUDA device while it runs, beyond what was there before."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def bytes_saved_for_backward(run: Callable[[], object], module: nn.Module) -> int:
    """Bytes that autograd saves from ``run`` for its backward pass, without the module's parameters and buffers.

    A storage saved several times, in whole or in part, counts once and in full, as a part keeps all of it alive.
    """
    # Not by address: tensors without data, as in ``FakeTensorMode``, have none.
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # so that no id is reused while we count
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values())
