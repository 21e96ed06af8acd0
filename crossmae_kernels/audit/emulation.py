"""Which instructions a program runs, how often, and what memory it touches: its integers computed for one program.

All threads of a program go through its machine code together. Integers, predicates and addresses are computed
(``integers.py``); everything else is unknown, since no tensor has data here. So loops run as often as on a device, and
every access has its addresses, but for what depends on loaded values. A branch that does is not taken if it leads
forward, so that more is counted rather than less, and a loop that does is left; the trace tells where. Subroutines,
which the assembler adds for operands that rarely come (square roots of subnormal numbers), are not entered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossmae_kernels.audit.integers import Predicate, Value
from crossmae_kernels.audit.machine_code import Instruction, is_predicate
from crossmae_kernels.audit.operands import TRUE, Operands, Threads
from crossmae_kernels.audit.semantics import execute

WARP = 32
SECTOR = 32
# Programs of this package run some thousand instructions; one that runs more than this goes on for ever.
MOST_STEPS = 2_000_000

GLOBAL = frozenset(("LDG", "STG", "LDGSTS", "RED", "ATOMG", "ATOM", "LD", "ST"))
SHARED = frozenset(("LDS", "STS", "LDSM", "STSM", "ATOMS", "LDGSTS"))
ASYNCHRONOUS = frozenset(("SYNCS", "UTMALDG", "UTMASTG", "UTCHMMA", "UTCBAR"))
ACCESSES = GLOBAL | SHARED | ASYNCHRONOUS
JUMPS = frozenset(("BRA", "EXIT", "CALL"))
REGION_BITS = 36
# Region of what is loaded through descriptors, whose barrier is told how many bytes to expect.
TMA = -2


@dataclass(frozen=True)
class Access:
    """What one execution of a load or store of global memory touches."""

    region: int
    """Which tensor: the upper bits of the address, -1 where addresses are unknown."""
    sectors: int
    """Of 32 bytes, that its warps ask for."""
    fetched: int
    """Those that L2 is asked for: all but what L1 has from earlier loads of the program."""


@dataclass
class Trace:
    """What a program runs."""

    warps: int
    steps: list[int] = field(default_factory=list)
    """Places of the executed instructions, in order."""
    running: dict[int, frozenset[int]] = field(default_factory=dict)
    """By step: the warps that ran it, where not all did."""
    doing: dict[int, frozenset[int]] = field(default_factory=dict)
    """By step, of accesses and barriers: the warps that it was not predicated off for."""
    accesses: dict[int, Access] = field(default_factory=dict)
    """By step: global memory."""
    passes: dict[int, int] = field(default_factory=dict)
    """By place: cycles of shared memory that a warp's access takes, bank conflicts included."""
    barriers: dict[int, int] = field(default_factory=dict)
    """By step: address of the memory barrier that is worked on; of a UTCHMMA its multiplications."""
    unknown: set[int] = field(default_factory=set)
    """Places of branches that depend on what was loaded."""


def emulate(
    code: Sequence[Instruction],
    threads: int,
    constants: Mapping[int, int],
    program: tuple[int, int, int],
    grid: tuple[int, int, int],
) -> Trace:
    """Run one program to the end of its last thread.

    Args:
        code: the kernel.
        threads: of a program.
        constants: 32-bit words by their offset in bytes, of bank 0 and, from ``2 * BANK`` on, of bank 2.
        program: its ids.
        grid: the number of programs.

    Raises:
        ValueError: where it does not end.
    """
    return _Emulator(code, threads, constants, program, grid).run()


class _Emulator:
    def __init__(self, code, threads, constants, program, grid) -> None:  # type: ignore[no-untyped-def]
        self.code: Sequence[Instruction] = code
        self.place_of = {instruction.address: place for place, instruction in enumerate(code)}
        self.threads: int = threads
        self.operands = Operands(Threads(threads, constants, program, grid))
        self.trace = Trace(-(-threads // WARP))
        self.first_lanes = np.arange(0, threads, WARP)
        self.every_thread: Predicate = np.ones(threads, bool)
        self.every_warp = frozenset(range(self.trace.warps))
        self.seen: dict[int, set[int]] = {}
        """Sectors that L1 has been asked for, by region."""

    def run(self) -> Trace:
        places = np.zeros(self.threads, np.int64)
        place, together, end = 0, True, len(self.code)
        while True:
            if not together:
                # Those that are furthest behind go on, so that threads meet again where their ways do.
                place = int(places.min())
                here = places == place
                together = bool(here.all())
                self.operands.active = None if together else here
            if place >= end:
                return self.trace
            if len(self.trace.steps) > MOST_STEPS:
                raise ValueError(f"a program runs more than {MOST_STEPS:,} instructions")
            after, leaving, target = self._step(place)
            if leaving is None and together:
                place = after
                continue
            if together:
                places[:] = after
                together = False
            else:
                places[self.operands.active] = after
            if leaving is not None:
                places[leaving] = target

    def _step(self, place: int) -> tuple[int, Predicate | None, int]:
        """Run an instruction: where threads go on, and which of them, if any, go where else."""
        instruction, trace, operands = self.code[place], self.trace, self.operands
        step = len(trace.steps)
        trace.steps.append(place)
        active = operands.active
        if active is not None:
            part = np.logical_or.reduceat(active, self.first_lanes)
            if not part.all():
                trace.running[step] = frozenset(np.flatnonzero(part).tolist())
        guard = operands.predicate(instruction.guard) if instruction.guard else TRUE
        name = instruction.name
        # A call of what is no subroutine is a jump.
        if name in JUMPS and (name != "CALL" or instruction.operands[-1].startswith("0x")):
            return self._jump(place, instruction, guard)
        if guard is TRUE or guard is None or guard.any():
            if name in ACCESSES:
                self._access(step, place, instruction, guard)
            execute(operands, instruction, guard)
        return place + 1, None, 0

    def _access(self, step: int, place: int, instruction: Instruction, guard: Predicate | None) -> None:
        if instruction.name in GLOBAL:
            self._global(step, instruction, guard)
        if instruction.name in SHARED:
            self._shared(step, place, instruction, guard)
        elif instruction.name in ASYNCHRONOUS:
            self._barrier(step, instruction, guard)

    def _jump(self, place: int, instruction: Instruction, guard: Predicate | None) -> tuple[int, Predicate | None, int]:
        condition = guard
        if instruction.name == "BRA" and len(instruction.operands) > 1:  # BRA P0, target; BRA.U UP0, target
            also = self.operands.predicate(instruction.operands[0])
            condition = None if also is None or guard is None else guard & also
        if condition is None:
            self.trace.unknown.add(place)
            return place + 1, None, 0
        leaves = instruction.name == "EXIT"
        target = len(self.code) if leaves else self.place_of[int(instruction.operands[-1], 16)]
        if not condition.any():
            return place + 1, None, 0
        active = self.operands.active
        taking = condition if active is None else condition & active
        if taking.all() if active is None else (taking == active).all():
            return target, None, 0
        if not taking.any():
            return place + 1, None, 0
        return place + 1, np.broadcast_to(taking, (self.threads,)), target

    def _taking(self, step: int, instruction: Instruction, guard: Predicate | None) -> Predicate:
        """Threads that an access is made for; where a predicate is unknown, all."""
        taking = self.every_thread
        last = instruction.operands[-1] if instruction.operands else ""
        for condition in (guard, self.operands.active, self.operands.predicate(last) if is_predicate(last) else None):
            if condition is not None and condition is not TRUE:
                taking = taking & condition
        if taking is self.every_thread:
            self.trace.doing[step] = self.every_warp
            return taking
        warps = np.logical_or.reduceat(taking, self.first_lanes)
        self.trace.doing[step] = frozenset(np.flatnonzero(warps).tolist())
        return taking

    def _global(self, step: int, instruction: Instruction, guard: Predicate | None) -> None:
        taking = self._taking(step, instruction, guard)
        if not taking.any():
            return
        address = self.operands.address([o for o in instruction.operands if "[" in o][-1])
        if address is None:  # what is gathered lies in rows, of which lanes take neighbours
            sectors = max(int(taking.sum()) * instruction.bytes // SECTOR, 1)
            self.trace.accesses[step] = Access(-1, sectors, sectors)
            return
        first = np.broadcast_to(address, (self.threads,))[taking]
        warps = np.flatnonzero(taking) // WARP << 56
        ends = {0, instruction.bytes - 1}
        asked = np.unique(np.concatenate([warps + (first + end) // SECTOR for end in ends]))
        region, fetched = int(first[0]) >> REGION_BITS, len(asked)
        if instruction.name in ("LDG", "LDGSTS") and "BYPASS" not in instruction.modifiers:
            known = self.seen.setdefault(region, set())
            before = len(known)
            known.update((asked & (1 << 56) - 1).tolist())
            fetched = len(known) - before
        self.trace.accesses[step] = Access(region, len(asked), fetched)

    def _shared(self, step: int, place: int, instruction: Instruction, guard: Predicate | None) -> None:
        """Passes of the first warp's first access; those of others and of later ones are taken to be as many."""
        taking = self._taking(step, instruction, guard)
        if place in self.trace.passes or not taking.any():
            return
        width, lanes = instruction.bytes, WARP
        if instruction.name in ("LDSM", "STSM"):
            width, lanes = 16, 8 * _matrices(instruction)
        address = self.operands.address(next(o for o in instruction.operands if "[" in o))
        self.trace.passes[place] = max(1, lanes * width // 128)
        if address is not None:
            warp = np.flatnonzero(taking)[0] // WARP * WARP
            lane = slice(warp, min(warp + lanes, self.threads))
            known = np.broadcast_to(address, (self.threads,))[lane][taking[lane]]
            self.trace.passes[place] = _passes(known, width)

    def _barrier(self, step: int, instruction: Instruction, guard: Predicate | None) -> None:
        """A TMA load names its barrier in the register behind that of its place in shared memory."""
        taking = self._taking(step, instruction, guard)
        place = next((operand for operand in instruction.operands if operand.startswith("[")), "[RZ]")
        if instruction.name == "UTMALDG":
            known = self.operands.value(f"UR{int(place.strip('[]')[2:]) + 1}")
        else:
            known = self.operands.address(place)
        self.trace.barriers[step] = -1 if known is None else int(known.max())
        if instruction.name == "UTCHMMA":
            self.trace.barriers[step] = self._shape(instruction)
        if {"ARRIVE", "TRANS64"} <= instruction.modifiers:
            expected = self.operands.value(instruction.operands[-1])
            bytes_ = np.broadcast_to(-1 if expected is None else expected, (self.threads,))[taking]
            if bytes_.size and bytes_[0] > 0:
                sectors = int(bytes_[0]) // SECTOR
                self.trace.accesses[step] = Access(TMA, sectors, sectors)

    def _shape(self, instruction: Instruction) -> int:
        """Multiplications of a UTCHMMA, by its descriptor (PTX ISA): N / 8 from bit 17 on, M / 16 from bit 24 on."""
        known = self.operands.value(next(o for o in instruction.operands if o.startswith("idesc"))[6:-1])
        if known is None:
            raise ValueError("a UTCHMMA of unknown shape")
        descriptor = int(known.max())
        return (descriptor >> 17 & 63) * 8 * (descriptor >> 24 & 31) * 16 * 16


def _matrices(instruction: Instruction) -> int:
    return 4 if "4" in instruction.modifiers else 2 if "2" in instruction.modifiers else 1


def _passes(addresses: Value, width: int) -> int:
    """Cycles that 32 banks of four bytes take, where lanes that want the same word are served at once."""
    group = WARP * 4 // max(width, 4)
    total = 0
    for start in range(0, len(addresses), group):
        some = addresses[start : start + group]
        words = np.unique(np.concatenate([(some >> 2) + word for word in range(max(1, width // 4))]))
        total += int(np.bincount(words % WARP).max())
    return total
