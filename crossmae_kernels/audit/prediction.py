"""How long a launch takes on a GPU that is not there, from its machine code: an interval, and what limits it.

Three programs of the grid are computed (``emulation.py``), since under a causal mask they differ; one multiprocessor
runs as many as fit (``replay.py``), and the time follows for as many as there are. Bytes: a program asks L2 for the
sectors of 32 bytes that its warps touch, and DRAM serves each tensor once, however often L2 is asked. How far such
times were from published ones is in ``docs/predictions.md``.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossmae_kernels.audit.compilation import Kernel
from crossmae_kernels.audit.devices import Device
from crossmae_kernels.audit.emulation import REGION_BITS, SECTOR, TMA, Trace, emulate
from crossmae_kernels.audit.operands import BANK
from crossmae_kernels.audit.recording import Launch
from crossmae_kernels.audit.replay import replay

# How far a time may be off, as a share of it: what docs/predictions.md shows of times that nothing was fitted to.
SPREAD = 0.46
# The same page's errors: of how many times, the median, and the worst; a test compares them.
JUDGED, MEDIAN_ERROR, WORST_ERROR = 59, 0.10, 0.40
# Rounds of resident programs that are replayed for a rate: of programs that run long, one; of others, this many or
# as many as run as long, since first rounds wait for memory at once and later ones no longer do.
ROUNDS, LONG = 3, 8_000


@dataclass(frozen=True)
class Prediction:
    """Of one launch."""

    microseconds: float
    limiter: str
    """The pipe that is busiest, or latency where none is busy for three fifths of the time."""
    occupancy: int
    """Programs that a multiprocessor holds at once."""
    waves: float
    """How often the GPU is filled."""
    instructions: float
    """Issued by a warp."""
    requested: int
    """Bytes that L2 is asked for."""
    moved: int
    """Bytes of DRAM."""
    floor: int
    """Bytes of its tensors, each once."""
    busy: dict[str, float]
    """Share of the time that each pipe works."""
    unknown: tuple[str, ...]
    """``file:line`` of branches that depend on what was loaded, of which both ways are not followed."""


def accuracy() -> str:
    """How far predictions were off, as a sentence to be shown beside them."""
    return (
        f"Such predictions of {JUDGED} published times of other kernels were off by {MEDIAN_ERROR:.0%} in the median "
        f"and by {WORST_ERROR:.0%} at most."
    )


def predict(launch: Launch, kernel: Kernel, device: Device) -> Prediction:
    """Predict a launch.

    Args:
        launch: as recorded.
        kernel: compiled from it for the device's architecture.
        device: where.

    Raises:
        ValueError: where a program's end is not found, or it does not fit.
    """
    x, y, z = (*launch.grid, 1, 1)[:3]
    grid = (x, y, z)
    programs = grid[0] * grid[1] * grid[2]
    if not programs:
        raise ValueError(f"{launch.name} has no programs")
    asked = 32 * launch.options.get("num_warps", 4)
    if kernel.file.threads > asked:  # they would wait for ever for what others write to shared memory
        raise ValueError(
            f"{kernel.file.threads - asked} threads are added for specialised warps, which are not followed"
        )
    words, arguments = _parameters(launch, kernel)
    # Where the driver writes the grid: before the parameters, which begin at 0x380 on Blackwell and lower before.
    at = 0x370 if kernel.file.parameters[0][0] >= 0x380 else 0xC
    words |= {at + 4 * axis: count for axis, count in enumerate(grid)}
    words |= {2 * BANK + offset: literal for offset, literal in kernel.file.literals.items()}
    traces: list[Trace] = []
    for sample in (1, 0, 2):
        if traces and programs <= device.limits.multiprocessors:
            break  # programs that stay share the work evenly
        if len(traces) == 2 and traces[0].steps == traces[1].steps:
            break  # and so do those that do not depend on their place
        place = [count * (2 * sample + 1) // 6 for count in grid]
        traces.append(emulate(kernel.code, kernel.file.threads, words, (place[0], place[1], place[2]), grid))
    trace = sorted(traces, key=lambda trace: len(trace.steps))[len(traces) // 2]
    mean = sum(len(each.steps) for each in traces) / len(traces) / len(trace.steps)
    requested, moved = _bytes(traces, programs, arguments)
    resident = occupancy(kernel, device)
    multiprocessors = device.limits.multiprocessors
    each = -(-programs // multiprocessors)
    rounds = max(ROUNDS, LONG // len(trace.steps)) if len(trace.steps) < LONG else 1
    played = min(each, resident * rounds)
    share = {region: moved[region] / asked for region, asked in requested.items() if asked}
    done = replay(kernel.code, trace, device, resident, played, share, programs / each)
    cycles = done.ends[-1]
    if each > played:
        later = played - resident
        rate = (done.ends[-1] - done.ends[resident - 1]) / later if later else done.ends[-1] / resident
        cycles += (each - played) * rate
    busy = {pipe: worked / done.ends[-1] for pipe, worked in done.busy.items()}
    pipe, most = max(busy.items(), key=lambda item: item[1])
    return Prediction(
        microseconds=cycles * mean / (device.clock * device.clock_share * 1e3) + device.launch,
        limiter=pipe if most > 0.6 else "latency",
        occupancy=resident,
        waves=programs / (multiprocessors * resident),
        instructions=done.instructions / played / trace.warps * mean,
        requested=sum(requested.values()),
        moved=sum(moved.values()),
        floor=sum(sum(each) for each in launch.extents.values()),
        busy=busy,
        unknown=tuple(sorted({kernel.code[place].line for place in trace.unknown})),
    )


def occupancy(kernel: Kernel, device: Device) -> int:
    """Programs that fit a multiprocessor: by registers, which a warp takes 256 at a time, shared memory and warps.

    Raises:
        ValueError: where none fits.
    """
    warps = -(-kernel.file.threads // 32)
    per_warp = -(-kernel.file.registers * 32 // 256) * 256
    by_registers = 4 * (16384 // per_warp) // warps
    by_shared = device.shared // (kernel.shared + 1024)
    fits = min(by_registers, by_shared, device.warps // warps, device.blocks)
    if fits < 1:
        needs = f"{warps} warps, {kernel.file.registers} registers and {kernel.shared} bytes of shared memory"
        raise ValueError(f"a program of {needs} does not fit {device.name}")
    return fits


def _parameters(launch: Launch, kernel: Kernel) -> tuple[dict[int, int], list[dict[int, int]]]:
    """Constant bank 0 by offset, where each tensor lies in a region of its own; by argument, bytes of its regions."""
    words: dict[int, int] = {}
    arguments: list[dict[int, int]] = [{TMA: 0}]
    regions = itertools.count(1)
    places = iter(kernel.file.parameters)

    def write(value: int) -> None:
        offset, size = next(places)
        for word in range(0, size, 4):
            words[offset + word] = value >> 8 * word & 0xFFFFFFFF

    for name, type_ in launch.signature.items():
        sizes = iter(launch.extents.get(name, ()))
        extents: dict[int, int] = {}
        arguments.append(extents)
        for each in type_ if isinstance(type_, tuple) else (type_,):
            if each == "constexpr":
                continue
            if str(each).startswith("tensordesc"):
                arguments[0][TMA] += next(sizes)
                rank = str(each).count(",") + 1
                for _ in range(1 + 2 * rank):
                    next(places)
            elif str(each).startswith("*"):
                region = next(regions)
                extents[region] = next(sizes)
                write(region << REGION_BITS)
            else:
                number = launch.numbers[name]
                write(int(number) if isinstance(number, int) else 0)
    return words, arguments


def _bytes(
    traces: list[Trace], programs: int, arguments: Sequence[Mapping[int, int]]
) -> tuple[dict[int, int], dict[int, int]]:
    """Bytes that L2 is asked for and that DRAM moves, by region; of unknown addresses all that is asked for.

    DRAM moves no more than an argument has. Of a tuple of tensors each program may want another one, and few programs
    are looked at, so that is a bound on all of them together.
    """
    requested: dict[int, float] = {}
    for trace in traces:
        for access in trace.accesses.values():
            requested[access.region] = requested.get(access.region, 0) + access.fetched * SECTOR
    asked = {region: round(sum_ * programs / len(traces)) for region, sum_ in requested.items()}
    moved = dict(asked)
    for extents in arguments:
        total = sum(asked.get(region, 0) for region in extents)
        if total > (most := sum(extents.values())):
            moved |= {region: asked[region] * most // total for region in extents if region in asked}
    return asked, moved
