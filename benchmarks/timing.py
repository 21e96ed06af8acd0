"""How a pass is timed.

On a GPU twice: alone, as replays of a CUDA graph that holds the pass once for each of several sets of arguments, which
together are larger than the last-level cache; and as a call from Python, waited for, which a training loop that does
not fill the device's queue pays. On a CPU as a call. Gradients are returned and never accumulated.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.problem import FORWARD, STEP, Direction, Problem, Solver, gradients, upstream_of
from crossmae.measure import wait_for_device

LEAST_ROUNDS, MOST_ROUNDS = 10, 200
# Arguments are to be this many times the cache, in no more sets than that.
CACHES, MOST_SETS = 3, 32

Pass = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of a pass over several rounds."""

    median: float
    p20: float
    p80: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Times":
        """Quantiles of single rounds."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        cuts = statistics.quantiles(seconds, n=5, method="inclusive")
        return cls(statistics.median(seconds), cuts[0], cuts[3], len(seconds))


@dataclass(frozen=True)
class Measurement:
    """What a pass costs."""

    call: Times
    """From Python, waited for."""
    graph: Times | None
    """Replayed; None on a CPU and where there is a reason."""
    no_graph: str
    """That reason; empty where nobody has a graph."""
    memory: int | None
    """Most bytes that the pass allocates beyond its arguments; None on a CPU and of a graph."""


def measure(
    problem: Problem, solver: Solver, direction: Direction, device: torch.device, seconds: float
) -> Measurement:
    """Time a contender; ``seconds`` is how long each kind of timing goes on after its least number of rounds."""
    sets = passes(problem, solver, direction, device)
    for _ in range(2 if seconds else 1):
        sets[0]()
    wait_for_device()
    # What a graph allocates is its own from the capture on.
    memory = _memory(sets[0]) if device.type == "cuda" and not solver.differentiates else None
    call = Times.of(_rounds(_cycled(sets), seconds))
    if device.type != "cuda" or solver.no_graph:
        return Measurement(call, None, solver.no_graph if device.type == "cuda" else "", memory)
    try:
        graph = capture(lambda: [run() for run in sets])
    except Exception as failure:  # its time as a call stands
        return Measurement(call, None, f"capture: {' '.join(str(failure).split())[:300]}", memory)
    replay = Times.of([t / len(sets) for t in _replays(graph, seconds)])
    return Measurement(call, replay, "", memory)


def passes(problem: Problem, solver: Solver, direction: Direction, device: torch.device) -> list[Pass]:
    """The pass on as many sets of arguments as overflow the cache; one on a CPU, and one of a training step."""
    first = problem.draw(problem.batch, 0, device)
    count = 1
    if device.type == "cuda" and direction != STEP:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        size = sum(t.numel() * t.element_size() for t in first.values())
        free, _ = torch.cuda.mem_get_info(device)
        count = max(1, min(math.ceil(CACHES * cache / size), MOST_SETS, free // (8 * size)))
    sets = [first, *(problem.draw(problem.batch, seed, device) for seed in range(1, count))]
    return [_pass(solver, arguments, direction, seed) for seed, arguments in enumerate(sets)]


def _pass(solver: Solver, arguments: dict[str, torch.Tensor], direction: Direction, seed: int) -> Pass:
    if direction == FORWARD:

        def forward() -> None:
            with torch.no_grad():
                solver(arguments)

        return forward
    upstream = upstream_of(solver, arguments, seed + 1000)

    def both() -> None:
        _, found = gradients(solver, arguments, upstream)
        if direction == STEP:
            assert solver.optimizer is not None
            for parameter, gradient in zip(solver.parameters, found, strict=True):
                parameter.grad = gradient
            solver.optimizer.step()
            solver.optimizer.zero_grad(set_to_none=True)

    return both


def capture(run: Pass) -> torch.cuda.CUDAGraph:
    """``run`` as a CUDA graph, after warm-up beside the capturing stream, as PyTorch asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def _cycled(sets: list[Pass]) -> Pass:
    """The next of the passes at every call."""
    turn = 0

    def run() -> None:
        nonlocal turn
        sets[turn % len(sets)]()
        turn += 1

    return run


def _rounds(run: Pass, seconds: float) -> list[float]:
    """Seconds of single calls, each waited for; of one where there is no time to spend, in a rehearsal."""
    times: list[float] = []
    least = LEAST_ROUNDS if seconds else 1
    begun = time.perf_counter()
    while len(times) < least or (len(times) < MOST_ROUNDS and time.perf_counter() - begun < seconds):
        wait_for_device()
        start = time.perf_counter()
        run()
        wait_for_device()
        times.append(time.perf_counter() - start)
    return times


def _replays(graph: torch.cuda.CUDAGraph, seconds: float) -> list[float]:
    """Seconds of single replays by the device's clock."""
    graph.replay()
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    begun = time.perf_counter()
    while len(events) < LEAST_ROUNDS or (len(events) < MOST_ROUNDS and time.perf_counter() - begun < seconds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        events.append((start, end))
        if len(events) % LEAST_ROUNDS == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in events]


def _memory(run: Pass) -> int:
    """Most bytes allocated while it runs, beyond what was before."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
