"""How a pass is timed.

pytest-benchmark times calls from Python, each waited for. What it can't time are replays of a CUDA graph, which holds
the pass once for each of several sets of arguments that together are larger than the last-level cache: these are timed
here, by the device's clock, and handed over to it. Gradients are returned and never accumulated.
"""

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.contest import FORWARD, STEP, Arguments, Contest, Direction, Form, Solver
from crossmae.measure import wait_for_device
from crossmae_kernels.testing.problem import named

MOST_ROUNDS = 200
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


def quartiles(seconds: Sequence[float]) -> dict[str, float]:
    """Of at least two rounds, named as pytest-benchmark names them."""
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3, "rounds": len(seconds)}


def passes(contest: Contest, solver: Solver, direction: Direction, device: torch.device) -> list[Pass]:
    """The pass on as many sets of arguments as overflow the cache; one on a CPU, and one of a training step."""
    first = contest.draw(contest.batch, 0, device)
    count = 1
    if device.type == "cuda" and direction != STEP:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        free, _ = torch.cuda.mem_get_info(device)
        count = sets_that_overflow(cache, sum(t.numel() * t.element_size() for _, t in named(first)), free)
    sets = [first, *(contest.draw(contest.batch, seed, device) for seed in range(1, count))]
    return [_pass(solver, arguments, direction, seed) for seed, arguments in enumerate(sets)]


def sets_that_overflow(cache: int, size: int, free: int) -> int:
    """How many sets of ``size`` bytes overflow a cache, as long as they take no more than an eighth of what is free."""
    return max(1, min(math.ceil(CACHES * cache / size), MOST_SETS, free // (8 * size)))


def _pass(solver: Solver, arguments: Arguments, direction: Direction, seed: int) -> Pass:
    if direction == FORWARD:
        return torch.no_grad()(lambda: solver(arguments))
    upstream, leaves = solver.upstream(arguments, seed + 1000), [*solver.differentiated(arguments).values()]

    def both() -> None:
        _, found = solver.gradients(arguments, leaves, upstream)
        if direction == STEP:
            assert solver.optimizer is not None
            for leaf, gradient in zip(leaves, found, strict=True):
                leaf.grad = gradient
            solver.optimizer.step()
            solver.optimizer.zero_grad(set_to_none=True)

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


def timed(run: Pass, rounds: int) -> list[float]:
    """Seconds of single calls."""
    times = [time.perf_counter()]
    for _ in range(rounds):
        run()
        times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


def replayed(sets: Sequence[Pass], form: Form) -> list[float]:
    """Seconds of a pass by the device's clock, over replays of a CUDA graph of all sets; raises if none holds it."""
    graph = _captured(sets)
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


def _captured(sets: Sequence[Pass]) -> torch.cuda.CUDAGraph:
    """After warm-up beside the capturing stream, as PyTorch asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in [*sets, *sets]:
            run()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in sets:
            run()
    return graph


def peak_memory(run: Pass) -> int:
    """Most bytes allocated on the GPU while it runs, beyond what was before."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
