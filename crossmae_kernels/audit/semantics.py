"""What instructions do to registers and predicates: those that loops, addresses and predicates are made of."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from crossmae_kernels.audit import integers
from crossmae_kernels.audit.integers import MASK, Predicate, Value
from crossmae_kernels.audit.machine_code import Instruction, is_predicate
from crossmae_kernels.audit.operands import Operands, further


def execute(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    """Compute what can be computed; what other instructions write is not known."""
    run = _SEMANTICS.get(instruction.name)
    if run is None:
        state.forget(instruction)
    else:
        run(state, instruction, guard)


_NO_CARRY = np.zeros(1, np.int64)


@lru_cache(4096)
def _taken_apart(operands: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Operands behind the destination as (predicates that are written, sources, predicates that are read)."""
    first, last = 0, len(operands)
    while first < last and is_predicate(operands[first]):
        first += 1
    while last > first and is_predicate(operands[last - 1]):
        last -= 1
    return operands[:first], operands[first:last], operands[last:]


def _carry(state: Operands, instruction: Instruction, predicates: Sequence[str]) -> Value | None:
    """What an instruction with X adds."""
    if "X" not in instruction.modifiers:
        return _NO_CARRY
    known = state.predicates(predicates)
    return None if known is None else sum((predicate.astype(np.int64) for predicate in known), _NO_CARRY)


def _add(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    destination = instruction.operands[0]
    out, sources, into = _taken_apart(instruction.operands[1:])
    if "64" in instruction.modifiers:
        wide = [value for value in map(state.wide, sources) if value is not None]
        state.set_wide(destination, sum(wide, _NO_CARRY) if len(wide) == len(sources) else None, guard)
        return
    values, total = state.values(sources), _carry(state, instruction, into)
    if values is None or total is None:
        total = None
    else:
        for source, value in zip(sources, values, strict=True):
            # Minus b is ~b + 1, whose carry says that nothing was borrowed.
            total = total + ((value - 1 & MASK) + 1 if source.startswith("-") else value)
    state.set_value(destination, None if total is None else total & MASK, guard)
    for place, predicate in enumerate(out):
        state.set_predicate(predicate, None if total is None else total >> 32 > place, guard)


def _multiply(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    destination = instruction.operands[0]
    out, (first, second, third), into = _taken_apart(instruction.operands[1:])
    modifiers = instruction.modifiers
    wide = "WIDE" in modifiers or "HI" in modifiers
    factors, c = state.values([first, second]), state.wide(third) if wide else state.value(third)
    carry, result = _carry(state, instruction, into), None
    if factors is not None and c is not None and carry is not None:
        a, b = map(integers.signed, factors) if wide and "U32" not in modifiers else factors
        result = a * b + c + carry
    for predicate in out:
        state.set_predicate(predicate, None, guard)
    if "WIDE" in modifiers:
        state.set_wide(destination, result, guard)
    else:
        kept = None if result is None else (result >> 32 if "HI" in modifiers else result) & MASK
        state.set_value(destination, kept, guard)


def _scaled_sum(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    destination = instruction.operands[0]
    out, (*sources, shift), into = _taken_apart(instruction.operands[1:])
    values, carry = state.values([*sources, "RZ"][:3]), _carry(state, instruction, into)
    total, over = None, None
    if values is not None and carry is not None:
        a, b, c = values
        total, over = integers.scaled_sum(instruction.modifiers, a, b, c, int(shift, 16), carry)
    state.set_value(destination, total, guard)
    for predicate in out:
        state.set_predicate(predicate, over, guard)


def _logic(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    out, (destination, *sources, table), _ = _taken_apart(instruction.operands)
    values = state.values(sources)
    result = None if values is None else integers.logic(int(table, 16), *values)
    state.set_value(destination, result, guard)
    for predicate in out:
        state.set_predicate(predicate, None if result is None else result != 0, guard)


def _logic_of_predicates(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    first, second, *sources = instruction.operands
    known = state.predicates(sources[:3])
    for destination, table in zip((first, second), sources[3:5], strict=True):
        result = None
        if known is not None:
            bits = [predicate.astype(np.int64) for predicate in known]
            result = integers.logic(int(table, 16), *bits) & 1 != 0
        state.set_predicate(destination, result, guard)


def _compare(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    first, second, left, right, also, *below = instruction.operands
    values, lower, other = state.values([left, right]), state.predicate([*below, "PT"][0]), state.predicate(also)
    outcome = opposite = None
    if {"S64", "U64"} & instruction.modifiers:
        pass  # of pairs of registers; no loop of this package has such a bound
    elif values is not None and lower is not None and other is not None:
        a, b = values
        plain = integers.compared(instruction.modifiers, a, b, lower)
        outcome = integers.combined(instruction.modifiers, plain, other)
        opposite = integers.combined(instruction.modifiers, ~plain, other)
    elif other is not None and not other.any() and "AND" in instruction.modifiers:
        outcome = opposite = other
    state.set_predicate(first, outcome, guard)
    state.set_predicate(second, opposite, guard)


def _of(function: Callable[..., Value]) -> Callable[[Operands, Instruction, Predicate | None], None]:
    """An instruction that makes one register of its others, by its modifiers."""

    def run(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
        destination, *sources = instruction.operands
        values = state.values(sources)
        state.set_value(destination, None if values is None else function(instruction.modifiers, *values), guard)

    return run


def _select(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    destination, first, second, chooser = instruction.operands
    values, choice = state.values([first, second]), state.predicate(chooser)
    known = None if values is None or choice is None else np.asarray(np.where(choice, *values), np.int64)
    state.set_value(destination, known, guard)


def _extremum(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    destination = instruction.operands[0]
    _, sources, choosers = _taken_apart(instruction.operands[1:])
    values, least = state.values(sources), state.predicate(choosers[-1]) if choosers else None
    if least is None or values is None or len(values) != 2:
        state.forget(instruction)
        return
    a, b = values if "U32" in instruction.modifiers else map(integers.signed, values)
    state.set_value(destination, np.asarray(np.where((a < b) == least, *values), np.int64), guard)


def _move(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    destination, source = instruction.operands[0], instruction.operands[-1 if instruction.name == "R2UR" else 1]
    if "128" in instruction.modifiers:
        state.forget(instruction)
        for low in (0, 2):
            part = state.wide(further(source, 4 * low))
            state.set_wide(further(destination, low), part, guard)
    elif "64" in instruction.modifiers:
        state.set_wide(destination, state.wide(source), guard)
    else:
        state.set_value(destination, state.value(source), guard)


def _special(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    destination, source = instruction.operands
    known = state.threads.special.get(source)
    if instruction.name == "CS2R" and "32" not in instruction.modifiers:
        state.set_wide(destination, known, guard)
    else:
        state.set_value(destination, known, guard)


def _packed_constant(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    """``HFMA2 R0, -RZ, RZ, 0, 5.96e-08`` is how the assembler moves a small number."""
    destination, *sources = instruction.operands
    if [source.lstrip("-") for source in sources[:2]] != ["RZ", "RZ"] or len(sources) < 4:
        state.forget(instruction)
        return
    upper, lower = (int(np.float16(float(source)).view(np.uint16)) for source in sources[2:4])
    state.set_value(destination, np.array([upper << 16 | lower]), guard)


def _elect(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    """One thread of each warp, here its first."""
    state.set_predicate(instruction.operands[0], state.threads.special["SR_LANEID"] == 0, guard)


def _vote(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    """``VOTEU.ANY UP0, P1``: whether it holds for any or for all threads of a warp."""
    voted = state.predicate(instruction.operands[-1])
    if not is_predicate(instruction.operands[0]) or voted is None:
        state.forget(instruction)
        return
    over = np.logical_and if "ALL" in instruction.modifiers else np.logical_or
    threads = np.arange(state.threads.count)
    found = over.reduceat(np.broadcast_to(voted, threads.shape), threads[::32])
    state.set_predicate(instruction.operands[0], found[threads // 32], guard)


def _shuffle(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    """Of lane 0 to all, as a warp learns its own number; what else is shuffled are no addresses."""
    _, destination, source, lane, *_ = instruction.operands
    value = state.value(source)
    if value is None or "IDX" not in instruction.modifiers or lane not in ("RZ", "0x0"):
        state.set_value(destination, None, guard)
        return
    every = np.broadcast_to(value, (state.threads.count,))
    state.set_value(destination, every[np.arange(state.threads.count) // 32 * 32], guard)


def _arrived(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    """What is waited for has come (``replay.py`` tells when), and room in tensor memory was there."""
    first, *others = instruction.operands
    if is_predicate(first):
        state.set_predicate(first, np.ones(1, bool), guard)
    if others and others[0].startswith("UR"):
        state.set_value(others[0], None, guard)


def _to_float(modifiers: frozenset[str], a: Value) -> Value:
    number = a if modifiers & {"U32", "RP"} and "S32" not in modifiers else integers.signed(a)
    return integers.bits_of(number.astype(np.float32))


def _reciprocal(state: Operands, instruction: Instruction, guard: Predicate | None) -> None:
    """Divisions by a number that is not constant begin with it."""
    a = state.value(instruction.operands[1])
    if a is None or "RCP" not in instruction.modifiers:
        state.forget(instruction)
        return
    with np.errstate(all="ignore"):
        state.set_value(instruction.operands[0], integers.bits_of(np.float32(1) / integers.as_float(a)), guard)


def _to_integer(modifiers: frozenset[str], a: Value) -> Value:
    with np.errstate(all="ignore"):
        number = np.nan_to_num(integers.as_float(a).astype(np.float64), nan=0.0, posinf=MASK, neginf=0)
    return np.trunc(np.clip(number, -(2**31), MASK)).astype(np.int64) & MASK


_SEMANTICS: dict[str, Callable[[Operands, Instruction, Predicate | None], None]] = {
    "IADD3": _add,
    "IADD": _add,
    "VIADD": _add,
    "IMAD": _multiply,
    "LEA": _scaled_sum,
    "LOP3": _logic,
    "PLOP3": _logic_of_predicates,
    "ISETP": _compare,
    "SHF": _of(integers.shifted),
    "SGXT": _of(integers.narrowed),
    "PRMT": _of(lambda _, a, selector, c: integers.permuted(a, selector, c)),
    "IABS": _of(lambda _, a: np.abs(integers.signed(a)) & MASK),
    "I2F": _of(_to_float),
    "I2FP": _of(_to_float),
    "F2I": _of(_to_integer),
    "SEL": _select,
    "VIMNMX": _extremum,
    "IMNMX": _extremum,
    "MOV": _move,
    "R2UR": _move,
    "LDC": _move,
    "ULDC": _move,
    "LDCU": _move,
    "S2R": _special,
    "S2UR": _special,
    "CS2R": _special,
    "HFMA2": _packed_constant,
    "ELECT": _elect,
    "VOTE": _vote,
    "VOTEU": _vote,
    "SHFL": _shuffle,
    "SYNCS": _arrived,
    "UTCATOMSWS": _arrived,
    "MUFU": _reciprocal,
}
# What works on uniform registers is named by a U more.
_SEMANTICS = {**{f"U{name}": run for name, run in _SEMANTICS.items()}, **_SEMANTICS}
