"""The largest batch whose training step fits into memory."""

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.problem import STEP, Problem, Solver
from benchmarks.timing import passes
from crossmae.measure import wait_for_device

# How near the answer is: the step from it to what does not fit, as a share of it.
RESOLUTION = 1 / 16


def largest_batch(problem: Problem, solver: Solver, device: torch.device, most: int) -> tuple[int, int | None]:
    """The largest batch that fits, 0 if none does, and the smallest found not to; None if ``most`` still fits."""
    return search(lambda batch: fits(replace(problem, batch=batch), solver, device), problem.batch, most)


def search(fits: Callable[[int], bool], first: int, most: int) -> tuple[int, int | None]:
    """Double from ``first`` until it does not fit, then bisect; ``first`` and ``most`` are at least 1."""
    good, bad, batch = 0, None, min(first, most)
    while bad is None or bad - good > max(1, RESOLUTION * good):
        if fits(batch):
            good = batch
        else:
            bad = batch
        if good == most:
            break
        batch = min(2 * good, most) if bad is None else (good + bad) // 2
    return good, bad


def fits(problem: Problem, solver: Solver, device: torch.device) -> bool:
    """Whether a step does, beside the optimizer's state, which stays; of the step nothing is left."""
    optimizer = solver.optimizer
    assert optimizer is not None
    has_state, steps = bool(optimizer.state), []
    try:
        steps += passes(problem, solver, STEP, device)
        for _ in range(1 if has_state else 2):
            steps[0]()
        wait_for_device()
        answer = True
    except Exception as failure:  # its traceback holds tensors, and is gone when memory is emptied below
        if not out_of_memory(failure):
            raise
        answer = False
    steps.clear()
    optimizer.zero_grad(set_to_none=True)
    if not (answer or has_state):
        optimizer.state.clear()  # half of it may be there
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return answer


def out_of_memory(failure: Exception) -> bool:
    """Whether memory was asked for that is not there, by PyTorch or by a library, on a device or on the host."""
    words = ("out of memory", "allocate memory", "ALLOC_FAILED")
    return isinstance(failure, torch.OutOfMemoryError) or any(word in str(failure) for word in words)
