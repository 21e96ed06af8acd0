"""How a pass of one operation is timed.

pytest-benchmark times calls from Python, each waited for. What it can't time are replays of a CUDA graph, which holds
the pass once for each of several sets of arguments that together are larger than the last-level cache: these are timed
here, by the device's clock, and handed over to it. Gradients are returned and never accumulated.
"""

import gc
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.contest import FORWARD, Call, Contest, Direction, Form, outputs, upstream_of
from crossmae.graphs import captured
from crossmae.measure import wait_for_device
from crossmae_kernels.testing.problem import Argument, named

MOST_ROUNDS, PROFILED = 200, 5
# Arguments are to be this many times the cache, in no more sets than that.
CACHES, MOST_SETS = 3, 32

Pass = Callable[[], object]


class Clock:
    """The timer of pytest-benchmark: the host's clock or, for what was timed before, a hand that moves by that."""

    def __init__(self) -> None:
        self._hand: float | None = None

    def __call__(self) -> float:
        """Seconds."""
        return time.perf_counter() if self._hand is None else self._hand

    def hand_over(self, benchmark: Any, seconds: Sequence[float]) -> None:
        """Let a ``benchmark`` whose timer this is record these rounds."""
        readings = itertools.accumulate(seconds)
        self._hand = 0.0
        try:
            benchmark.pedantic(lambda: setattr(self, "_hand", next(readings)), rounds=len(seconds))
        finally:
            self._hand = None


CLOCK = Clock()


def passes(contest: Contest, call: Call, direction: Direction, device: torch.device) -> list[Pass]:
    """The pass on as many sets of arguments as overflow a GPU's cache; on one set elsewhere."""
    first = contest.draw(0, device).leaves(contest.dtype)
    count = 1
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        free, _ = torch.cuda.mem_get_info(device)
        count = sets_that_overflow(cache, sum(t.numel() * t.element_size() for _, t in named(first)), free)
    sets = [first, *(contest.draw(seed, device).leaves(contest.dtype) for seed in range(1, count))]
    return [_pass(call, arguments, direction, seed) for seed, arguments in enumerate(sets)]


def sets_that_overflow(cache: int, size: int, free: int) -> int:
    """How many sets of ``size`` bytes overflow a cache, as long as they take no more than an eighth of what is free."""
    return max(1, min(math.ceil(CACHES * cache / size), MOST_SETS, free // (8 * size)))


def _pass(call: Call, arguments: dict[str, Argument], direction: Direction, seed: int) -> Pass:
    if direction == FORWARD:
        return torch.no_grad()(lambda: call(**arguments))
    leaves = [tensor for _, tensor in named(arguments) if tensor.requires_grad]
    # With gradients even here: without them a compiler would compile the call once more.
    upstream = upstream_of(outputs(call(**arguments)), seed)

    def both() -> object:
        return torch.autograd.grad(outputs(call(**arguments)), leaves, upstream, materialize_grads=True)

    return both


def cycled(sets: Sequence[Pass]) -> Pass:
    """The next of the passes at every call, waited for."""
    turns = itertools.cycle(sets)

    def run() -> None:
        next(turns)()
        wait_for_device()

    return run


def rounds_of(run: Pass, form: Form) -> int:
    """How many calls fit into the form's time, within limits; at least one call is made before."""
    run()
    if not form.seconds:
        return form.rounds
    (seconds,) = timed(run, 1)
    return int(max(form.rounds, min(form.seconds / seconds, MOST_ROUNDS)))


def kernel_times(run: Pass) -> dict[str, tuple[int, float]]:
    """How often a pass launches each kernel (or copies or fills memory) on a GPU, and the seconds of these launches.

    Means of ``PROFILED`` passes by PyTorch's profiler, after one that compiles. Nothing is found on a CPU.
    """
    run()
    wait_for_device()
    with torch.profiler.profile() as profiler:
        for _ in range(PROFILED):
            run()
        wait_for_device()
    found: dict[str, tuple[int, float]] = {}
    for event in profiler.events() or ():
        if event.device_type.name == "CUDA":
            launches, seconds = found.get(event.name, (0, 0.0))
            found[event.name] = launches + 1, seconds + event.time_range.elapsed_us() / 1e6
    return {name: (launches // PROFILED, seconds / PROFILED) for name, (launches, seconds) in found.items()}


def timed(run: Pass, rounds: int) -> list[float]:
    """Seconds of single calls."""
    times = [time.perf_counter()]
    for _ in range(rounds):
        run()
        times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


def replayed(sets: Sequence[Pass], form: Form) -> list[float]:
    """Seconds of a pass by the device's clock, over replays of a CUDA graph of all sets; raises if none holds it."""
    gc.collect()
    torch.cuda.empty_cache()

    def all_of_them() -> None:
        for run in sets:
            run()

    graph, _ = captured(all_of_them)
    rounds = rounds_of(cycled([graph.replay]), form)
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        events.append((start, end))
        if len(events) % form.rounds == 0:  # or the queue fills up
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 / len(sets) for start, end in events]
