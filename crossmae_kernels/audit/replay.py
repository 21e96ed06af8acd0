"""One multiprocessor runs the programs that fit, instruction by instruction, as the assembler scheduled them.

Each warp issues in order. An instruction waits for the barriers that it names, for its scheduler and for its pipe; the
next one of the warp follows after the cycles that the assembler put between them. A pipe serves who comes first. Left
out are register banks, the instruction cache, and all that the memory system does but deliver so many bytes a cycle.
"""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossmae_kernels.audit.devices import DRAM_LATENCY, L2_LATENCY, SYNCHRONIZATION_LATENCY, Device
from crossmae_kernels.audit.emulation import SECTOR, Trace
from crossmae_kernels.audit.machine_code import Instruction
from crossmae_kernels.audit.pipes import OWN_PIPES, PIPES, SCHEDULERS, cost_of

# Operands are read, and their registers free, so long after a pipe has begun.
READ = 10


@dataclass(frozen=True)
class Replay:
    """What one multiprocessor took."""

    ends: tuple[float, ...]
    """Cycle in which each program ended, in order."""
    busy: dict[str, float]
    """Cycles that each pipe worked, of the one of four that worked most."""
    instructions: int
    """Issued, of all warps."""


class _Warp:
    """Where a warp is, and what it waits for."""

    def __init__(self, program: "_Program", number: int, scheduler: int, start: float) -> None:
        self.program, self.number, self.scheduler = program, number, scheduler
        self.step = 0
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
        self.code: Sequence[Instruction] = code
        self.trace: Trace = trace
        self.all = frozenset(range(trace.warps))
        self.costs = [
            cost_of(instruction, device, trace.passes.get(place, 1)) for place, instruction in enumerate(code)
        ]
        self.device: Device = device
        self.from_dram: Mapping[int, float] = from_dram
        l2 = min(device.l2_bytes * device.limits.multiprocessors / multiprocessors, 64.0)
        dram = device.bandwidth * device.bandwidth_share / (device.clock * device.clock_share) / multiprocessors
        self.l2_cycles, self.dram_cycles = SECTOR / l2, SECTOR / dram
        self.free = {pipe: [0.0] * SCHEDULERS for pipe in PIPES}
        self.busy = {pipe: [0.0] * SCHEDULERS for pipe in PIPES}
        self.queue: list[tuple[float, int, _Warp]] = []
        self.pushed = 0
        self.issued = 0
        self.now = 0.0

    def run(self, resident: int, programs: int) -> Replay:
        ends: list[float] = []
        started = 0
        for _ in range(min(resident, programs)):
            self._start(started, 0.0)
            started += 1
        while self.queue:
            time, _, warp = heapq.heappop(self.queue)
            ended = self._advance(warp, time)
            if ended is None:
                continue
            warp.program.running -= 1
            if warp.program.running == 0:
                ends.append(ended)
                if started < programs:
                    self._start(started, ended)
                    started += 1
        if len(ends) < programs:
            raise ValueError(f"{programs - len(ends)} of {programs} programs wait for ever")
        # Stores are on their way when their programs have ended.
        ends[-1] = max(ends[-1], *(self.free[pipe][0] for pipe in ("L2", "DRAM")))
        return Replay(tuple(sorted(ends)), {pipe: max(cycles) for pipe, cycles in self.busy.items()}, self.issued)

    def _start(self, number: int, time: float) -> None:
        program = _Program(self.trace.warps)
        for warp in range(self.trace.warps):
            self._push(time, _Warp(program, warp, (number * self.trace.warps + warp) % SCHEDULERS, time))

    def _push(self, time: float, warp: _Warp) -> None:
        self.pushed += 1
        heapq.heappush(self.queue, (time, self.pushed, warp))

    def _take(self, pipe: str, scheduler: int, earliest: float, cycles: float) -> float:
        """Take a pipe for so long, as soon as it is free; when that begins."""
        free = self.free[pipe]
        begin = free[scheduler] if free[scheduler] > earliest else earliest
        free[scheduler] = begin + cycles
        self.busy[pipe][scheduler] += cycles
        return begin

    def _advance(self, warp: _Warp, time: float) -> float | None:
        """Issue instructions of a warp until another is due; when it ended, if it did."""
        steps, code, running = self.trace.steps, self.code, self.trace.running
        while warp.step < len(steps):
            step = warp.step
            if step in running and warp.number not in running[step]:
                warp.step += 1
                continue
            instruction = code[steps[step]]
            for barrier in instruction.waits:
                if warp.barriers[barrier] > time:
                    time = warp.barriers[barrier]
            if self.queue and self.queue[0][0] < time:
                self._push(time, warp)
                return None
            time = self._take("issue", warp.scheduler, time, 1)
            self.issued += 1
            warp.step += 1
            after = self._execute(warp, step, instruction, time)
            if after is None:
                return None  # it waits for other warps
            time = max(after, time + max(instruction.stall, 1))
        return time

    def _execute(self, warp: _Warp, step: int, instruction: Instruction, time: float) -> float | None:
        """Let an issued instruction take its pipes; from when on the warp may go on, as far as it decides."""
        name = instruction.name
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, warp, step, instruction, time)
        cost = self.costs[self.trace.steps[step]]
        begin = time
        doing = self.trace.doing.get(step, self.all)
        if cost.cycles and warp.number in doing:
            scheduler = warp.scheduler if cost.pipe in OWN_PIPES else 0
            begin = self._take(cost.pipe, scheduler, time, cost.cycles)
        done = begin + cost.latency
        access = self.trace.accesses.get(step)
        if access is not None and warp.number in doing:
            if name != "LDGSTS":  # what is copied has been counted where it is written to shared memory
                begin = self._take("shared memory", 0, begin, max(1.0, access.sectors / len(doing) / 4))
            done = self._memory(access, len(doing), begin)
            warp.copies = max(warp.copies, done) if name == "LDGSTS" else warp.copies
        if instruction.writes != 7:
            warp.barriers[instruction.writes] = max(warp.barriers[instruction.writes], done)
        if instruction.reads != 7:
            warp.barriers[instruction.reads] = max(warp.barriers[instruction.reads], begin + READ)
        # A pipe takes a few instructions ahead; beyond that the warp waits with it.
        return max(time, begin - 8 * cost.cycles)

    def _memory(self, access, warps: int, time: float) -> float:  # type: ignore[no-untyped-def]
        """Fetch or store a warp's sectors; when they are there."""
        sectors = access.fetched / warps
        share = self.from_dram.get(access.region, 1.0)
        if not sectors:
            return time + 40
        begin = self._take("L2", 0, time, sectors * self.l2_cycles)
        begin = max(begin, self._take("DRAM", 0, time, sectors * share * self.dram_cycles))
        return begin + L2_LATENCY + share * (DRAM_LATENCY - L2_LATENCY)

    def _synchronize(self, warp, step, instruction, time):  # type: ignore[no-untyped-def]
        """``BAR.SYNC``: the program's warps, or as many as the barrier is told, wait for each other."""
        if "ARV" in instruction.modifiers:
            return time
        operands = instruction.operands
        barrier = operands[0] if operands else "0x0"
        running = self.trace.running.get(step)
        count = self.trace.warps if running is None else len(running)
        if len(operands) > 1 and operands[1].startswith("0x"):
            count = int(operands[1], 16) // 32
        waiting = warp.program.waiting.setdefault(barrier, [])
        waiting.append((time, warp))
        if len(waiting) < count:
            return None
        last = max(at for at, _ in waiting) + SYNCHRONIZATION_LATENCY
        del warp.program.waiting[barrier]
        for _, other in waiting:
            self._push(last, other)
        return None

    def _commit_copies(self, warp, step, instruction, time):  # type: ignore[no-untyped-def]
        warp.groups.append(warp.copies)
        if instruction.writes != 7:
            warp.barriers[instruction.writes] = max(warp.barriers[instruction.writes], warp.copies)
        return time

    def _await_copies(self, warp, step, instruction, time):  # type: ignore[no-untyped-def]
        """``DEPBAR.LE SB0, 0x2``: at most two groups are under way."""
        left = int(instruction.operands[1], 16) if len(instruction.operands) > 1 else 0
        done = list(warp.groups)[: len(warp.groups) - left]
        return max([time, *done])

    def _multiply(self, warp, step, instruction, time):  # type: ignore[no-untyped-def]
        cost = self.costs[self.trace.steps[step]]
        # What it reads is counted now, when it waits in line: reads of who comes in between would else wait behind it.
        self._take("shared memory", 0, time, cost.shared)
        begin = self._take("tensor cores", warp.scheduler, time, cost.cycles)
        if "gsb0" in instruction.operands:
            warp.products.append(begin + cost.latency)
        return time

    def _await_products(self, warp, step, instruction, time):  # type: ignore[no-untyped-def]
        """``WARPGROUP.DEPBAR.LE gsb0, 0x1``; a warp that arrives waits for nothing."""
        if "DEPBAR" not in instruction.modifiers:
            return time
        left = int(instruction.operands[1], 16)
        done = list(warp.products)[: len(warp.products) - left]
        return max([time, *done])

    def _asynchronous(self, warp, step, instruction, time):  # type: ignore[no-untyped-def]
        """TMA, products of tensor memory, and the memory barriers that tell when they are done."""
        if warp.number not in self.trace.doing.get(step, ()):
            return time
        program, name, address = warp.program, instruction.name, self.trace.barriers[step]
        if name == "UTCHMMA":
            cost = cost_of(instruction, self.device, 0, address)
            warp.product = self._take("all tensor cores", 0, time, cost.cycles) + cost.latency
        elif name == "UTCBAR":
            self._complete(program, address, warp.product)
        elif "ARRIVE" in instruction.modifiers:
            access = self.trace.accesses.get(step)
            self._complete(program, address, self._memory(access, 1, time) if access else time)
        elif "PHASECHK" in instruction.modifiers:
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
