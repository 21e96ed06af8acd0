"""One multiprocessor runs the programs that fit, instruction by instruction, as the assembler scheduled them.

Each warp issues in order. An instruction waits for the barriers that it names, for its scheduler and for its pipe; the
next one of the warp follows after the cycles that the assembler put between them. A pipe serves who comes first. Left
out are register banks, the instruction cache, and all that the memory system does but deliver so many bytes a cycle.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Any

from crossmae_kernels.audit.devices import DRAM_LATENCY, L2_LATENCY, SYNCHRONIZATION_LATENCY, Device
from crossmae_kernels.audit.emulation import SECTOR, Access, Trace
from crossmae_kernels.audit.machine_code import Instruction
from crossmae_kernels.audit.pipes import OWN_PIPES, PIPES, SCHEDULERS, Cost, cost_of

# Operands are read, and their registers free, so long after a pipe has begun.
READ = 10
# A pipe takes so many instructions ahead; beyond that a warp waits with it.
AHEAD = 8


@dataclass(frozen=True)
class Replay:
    """What one multiprocessor took."""

    ends: tuple[float, ...]
    """Cycle in which each program ended, in order."""
    busy: dict[str, float]
    """Cycles that each pipe worked, of the one of four that worked most."""
    instructions: int
    """Issued, of all warps."""


class _Pipe:
    """What serves one instruction after the other: until when it is taken, and for how many cycles it was."""

    __slots__ = ("busy", "free")

    def __init__(self) -> None:
        self.busy = self.free = 0.0

    def take(self, earliest: float, cycles: float) -> float:
        """Take it for so long, as soon as it is free; when that begins."""
        begin = self.free if self.free > earliest else earliest
        self.free = begin + cycles
        self.busy += cycles
        return begin


@dataclass(slots=True)
class _Step:
    """An instruction that a program executes, and what its execution has to do with warps and memory."""

    run: "Callable[[_Multiprocessor, _Warp, _Step, float], float | None]"
    """Take its pipes, once it is issued; returns when they let the warp go on, or None where other warps do."""
    instruction: Instruction
    waits: tuple[int, ...]
    stall: int
    running: frozenset[int]
    """Warps that run it."""
    doing: frozenset[int]
    """Those of them that it was not predicated off for."""
    cost: Cost
    pipes: Sequence[_Pipe]
    """That it takes, by scheduler."""
    access: Access | None
    """Of global memory."""
    barrier: int | None
    """As in ``Trace.barriers``."""


class _Warp:
    """Where a warp is, and what it waits for."""

    def __init__(
        self, program: "_Program", number: int, steps: Sequence[_Step], scheduler: int, issue: _Pipe, start: float
    ) -> None:
        self.program, self.number, self.scheduler, self.issue = program, number, scheduler, issue
        self.later = iter(steps)
        self.step = next(self.later, None)
        self.barriers = [start] * 8
        self.copies = start
        """When the asynchronous copies that belong to no group yet are done."""
        self.groups: deque[float] = deque(maxlen=32)
        self.products: deque[float] = deque(maxlen=32)
        self.product = start
        self.phases: dict[int, int] = {}
        """Memory barriers, and how often this warp has waited for them."""


class _Program:
    def __init__(self, warps: int) -> None:
        self.running = warps
        self.waiting: dict[str, list[tuple[float, _Warp]]] = {}
        """At a barrier of the program, by its number."""
        self.phases: dict[int, list[float]] = {}
        """When each phase of a memory barrier completes, by its address."""
        self.parked: dict[int, list[_Warp]] = {}
        """Warps that wait for a phase that nobody has begun."""


def replay(
    code: Sequence[Instruction],
    trace: Trace,
    device: Device,
    resident: int,
    programs: int,
    from_dram: Mapping[int, float],
    multiprocessors: float,
) -> Replay:
    """Run ``programs`` equal programs on one multiprocessor, of which so many are resident at a time.

    Args:
        code: the kernel.
        trace: of one program.
        device: where.
        resident: programs that fit at once.
        programs: to be run.
        from_dram: share of a region's bytes that L2 does not have, by region.
        multiprocessors: that share L2 and DRAM, on average while this one runs.
    """
    return _Multiprocessor(code, trace, device, from_dram, multiprocessors).run(resident, programs)


class _Multiprocessor:
    def __init__(  # type: ignore[no-untyped-def]
        self, code, trace, device, from_dram, multiprocessors
    ) -> None:
        self.device: Device = device
        self.from_dram: Mapping[int, float] = from_dram
        l2 = min(device.l2_bytes * device.limits.multiprocessors / multiprocessors, 64.0)
        dram = device.bandwidth * device.bandwidth_share / (device.clock * device.clock_share) / multiprocessors
        self.l2_cycles, self.dram_cycles = SECTOR / l2, SECTOR / dram
        self.own = {pipe: [_Pipe() for _ in range(SCHEDULERS)] for pipe in OWN_PIPES}
        self.shared = {pipe: _Pipe() for pipe in PIPES if pipe not in OWN_PIPES}
        self.warps: int = trace.warps
        self.steps = self._steps(code, trace)
        self.queue: list[tuple[float, int, _Warp]] = []
        self.pushed = count()

    def _steps(self, code: Sequence[Instruction], trace: Trace) -> list[list[_Step]]:
        """What each warp executes; executions that are alike, as in a loop, share a step."""
        shared = {name: [pipe] * SCHEDULERS for name, pipe in self.shared.items()}
        pipes: Mapping[str, Sequence[_Pipe]] = {**self.own, **shared}
        every = frozenset(range(trace.warps))
        found: dict[Any, _Step] = {}
        steps = []
        for number, place in enumerate(trace.steps):
            running, doing = trace.running.get(number, every), trace.doing.get(number, every)
            access, barrier = trace.accesses.get(number), trace.barriers.get(number)
            alike = place, running, doing, access, barrier
            if alike not in found:
                instruction = code[place]
                cost = cost_of(instruction, self.device, trace.passes.get(place, 1))
                plain = access is None and doing == every and instruction.writes == instruction.reads == 7
                run = _SPECIAL.get(instruction.name) or (_Multiprocessor._plain if plain else _Multiprocessor._execute)
                stall = max(instruction.stall, 1)
                found[alike] = _Step(
                    run, instruction, instruction.waits, stall, running, doing, cost, pipes[cost.pipe], access, barrier
                )
            steps.append(found[alike])
        return [[step for step in steps if warp in step.running] for warp in range(trace.warps)]

    def run(self, resident: int, programs: int) -> Replay:
        ends: list[float] = []
        started = 0
        for _ in range(min(resident, programs)):
            self._start(started, 0.0)
            started += 1
        for warp, ended in self._issue():
            warp.program.running -= 1
            if warp.program.running == 0:
                ends.append(ended)
                if started < programs:
                    self._start(started, ended)
                    started += 1
        if len(ends) < programs:
            raise ValueError(f"{programs - len(ends)} of {programs} programs wait for ever")
        # Stores are on their way when their programs have ended.
        ends[-1] = max(ends[-1], *(self.shared[pipe].free for pipe in ("L2", "DRAM")))
        busy = {name: max(pipe.busy for pipe in pipes) for name, pipes in self.own.items()}
        busy |= {name: pipe.busy for name, pipe in self.shared.items()}
        return Replay(tuple(sorted(ends)), busy, programs * sum(map(len, self.steps)))

    def _start(self, number: int, time: float) -> None:
        program = _Program(self.warps)
        for warp in range(self.warps):
            scheduler = (number * self.warps + warp) % SCHEDULERS
            issue = self.own["issue"][scheduler]
            self._push(time, _Warp(program, warp, self.steps[warp], scheduler, issue, time))

    def _push(self, time: float, warp: _Warp) -> None:
        heappush(self.queue, (time, next(self.pushed), warp))

    def _issue(self) -> Iterator[tuple[_Warp, float]]:
        """Issue instructions, always of the warp that is due first; yields each warp that ends, and when."""
        queue, pushed = self.queue, self.pushed
        while queue:
            time, _, warp = heappop(queue)
            while step := warp.step:
                for barrier in step.waits:
                    if warp.barriers[barrier] > time:
                        time = warp.barriers[barrier]
                if queue and queue[0][0] < time:
                    time, _, warp = heapreplace(queue, (time, next(pushed), warp))
                    continue
                time = warp.issue.take(time, 1)
                warp.step = next(warp.later, None)
                after = step.run(self, warp, step, time)
                if after is None:
                    break  # it waits for other warps
                time += step.stall
                if after > time:
                    time = after
            else:
                yield warp, time

    def _plain(self, warp: _Warp, step: _Step, time: float) -> float:
        """What takes one pipe and sets no barrier, as most instructions do."""
        cycles = step.cost.cycles
        return step.pipes[warp.scheduler].take(time, cycles) - AHEAD * cycles if cycles else time

    def _execute(self, warp: _Warp, step: _Step, time: float) -> float:
        """What is not special."""
        cost, instruction = step.cost, step.instruction
        begin = time
        if cost.cycles and warp.number in step.doing:
            begin = step.pipes[warp.scheduler].take(time, cost.cycles)
        done = begin + cost.latency
        access = step.access
        if access is not None and warp.number in step.doing:
            warps, copied = len(step.doing), instruction.name == "LDGSTS"
            if not copied:  # what is copied has been counted where it is written to shared memory
                begin = self.shared["shared memory"].take(begin, max(1.0, access.sectors / warps / 4))
            done = self._memory(access, warps, begin)
            warp.copies = max(warp.copies, done) if copied else warp.copies
        if instruction.writes != 7:
            warp.barriers[instruction.writes] = max(warp.barriers[instruction.writes], done)
        if instruction.reads != 7:
            warp.barriers[instruction.reads] = max(warp.barriers[instruction.reads], begin + READ)
        return begin - AHEAD * cost.cycles

    def _memory(self, access, warps: int, time: float) -> float:  # type: ignore[no-untyped-def]
        """Fetch or store a warp's sectors; when they are there."""
        sectors = access.fetched / warps
        share = self.from_dram.get(access.region, 1.0)
        if not sectors:
            return time + 40
        begin = self.shared["L2"].take(time, sectors * self.l2_cycles)
        begin = max(begin, self.shared["DRAM"].take(time, sectors * share * self.dram_cycles))
        return begin + L2_LATENCY + share * (DRAM_LATENCY - L2_LATENCY)

    def _synchronize(self, warp: _Warp, step: _Step, time: float) -> float | None:
        """``BAR.SYNC``: the program's warps, or as many as the barrier is told, wait for each other."""
        if "ARV" in step.instruction.modifiers:
            return time
        operands = step.instruction.operands
        barrier = operands[0] if operands else "0x0"
        expected = len(step.running)
        if len(operands) > 1 and operands[1].startswith("0x"):
            expected = int(operands[1], 16) // 32
        waiting = warp.program.waiting.setdefault(barrier, [])
        waiting.append((time, warp))
        if len(waiting) < expected:
            return None
        last = max(at for at, _ in waiting) + SYNCHRONIZATION_LATENCY
        del warp.program.waiting[barrier]
        for _, other in waiting:
            self._push(last, other)
        return None

    def _commit_copies(self, warp: _Warp, step: _Step, time: float) -> float | None:
        warp.groups.append(warp.copies)
        instruction = step.instruction
        if instruction.writes != 7:
            warp.barriers[instruction.writes] = max(warp.barriers[instruction.writes], warp.copies)
        return time

    def _await_copies(self, warp: _Warp, step: _Step, time: float) -> float | None:
        """``DEPBAR.LE SB0, 0x2``: at most two groups are under way."""
        left = int(step.instruction.operands[1], 16) if len(step.instruction.operands) > 1 else 0
        done = list(warp.groups)[: len(warp.groups) - left]
        return max([time, *done])

    def _multiply(self, warp: _Warp, step: _Step, time: float) -> float | None:
        cost = step.cost
        # What it reads is counted now, when it waits in line: reads of who comes in between would else wait behind it.
        self.shared["shared memory"].take(time, cost.shared)
        begin = step.pipes[warp.scheduler].take(time, cost.cycles)
        if "gsb0" in step.instruction.operands:
            warp.products.append(begin + cost.latency)
        return time

    def _await_products(self, warp: _Warp, step: _Step, time: float) -> float | None:
        """``WARPGROUP.DEPBAR.LE gsb0, 0x1``; a warp that arrives waits for nothing."""
        if "DEPBAR" not in step.instruction.modifiers:
            return time
        left = int(step.instruction.operands[1], 16)
        done = list(warp.products)[: len(warp.products) - left]
        return max([time, *done])

    def _asynchronous(self, warp: _Warp, step: _Step, time: float) -> float | None:
        """TMA, products of tensor memory, and the memory barriers that tell when they are done."""
        if step.barrier is None or warp.number not in step.doing:
            return time
        program, name, address = warp.program, step.instruction.name, step.barrier
        if name == "UTCHMMA":
            cost = cost_of(step.instruction, self.device, 0, address)
            warp.product = self.shared["all tensor cores"].take(time, cost.cycles) + cost.latency
        elif name == "UTCBAR":
            self._complete(program, address, warp.product)
        elif "ARRIVE" in step.instruction.modifiers:
            self._complete(program, address, self._memory(step.access, 1, time) if step.access else time)
        elif "PHASECHK" in step.instruction.modifiers:
            return self._await_phase(warp, address, time)
        return time

    def _complete(self, program: _Program, address: int, time: float) -> None:
        """Begin a phase of a memory barrier, which completes then; whoever waited for it may look again."""
        program.phases.setdefault(address, []).append(time)
        for warp in program.parked.pop(address, []):
            self._push(max(time, self._await_phase(warp, address, time) or time), warp)

    def _await_phase(self, warp: _Warp, address: int, time: float) -> float | None:
        seen = warp.phases.get(address, 0)
        phases = warp.program.phases.get(address, [])
        if seen < len(phases):
            warp.phases[address] = seen + 1
            return max(time, phases[seen] + SYNCHRONIZATION_LATENCY)
        warp.program.parked.setdefault(address, []).append(warp)
        return None


_SPECIAL = {
    "BAR": _Multiprocessor._synchronize,
    "LDGDEPBAR": _Multiprocessor._commit_copies,
    "DEPBAR": _Multiprocessor._await_copies,
    "HGMMA": _Multiprocessor._multiply,
    "WARPGROUP": _Multiprocessor._await_products,
    "SYNCS": _Multiprocessor._asynchronous,
    "UTCHMMA": _Multiprocessor._asynchronous,
    "UTCBAR": _Multiprocessor._asynchronous,
}
