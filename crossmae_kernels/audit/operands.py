"""Registers of all threads of a program, and the instructions that change what is known of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from crossmae_kernels.audit import integers
from crossmae_kernels.audit.integers import MASK, Predicate, Value
from crossmae_kernels.audit.machine_code import REGISTER, Instruction

# A parameter, at an offset that may be a register's, as of a tuple of pointers; in bank 2 a literal.
_CONSTANT = re.compile(r"^c\[0x([02])\]\[(?:(U?R(?:Z|\d+))\+?)?(0x[0-9a-f]+)?\]$")
BANK = 1 << 16
"""Bytes of a constant bank; the words of bank 2 lie behind those of two banks."""
_ZERO: Value = np.zeros(1, np.int64)
TRUE: Predicate = np.ones(1, bool)
"""What guards an instruction without a predicate."""


class Threads:
    """What threads of one program find when they begin: constants, parameters among them, and ids."""

    def __init__(
        self, threads: int, constants: Mapping[int, int], program: tuple[int, int, int], grid: tuple[int, int, int]
    ) -> None:
        self.count = threads
        self.constants = constants
        lanes = np.arange(threads, dtype=np.int64)
        self.special = {"SR_TID.X": lanes, "SR_LANEID": lanes % 32}
        for place, axis in enumerate("XYZ"):
            self.special[f"SR_CTAID.{axis}"] = np.array([program[place]])
            self.special[f"SR_NCTAID.{axis}"] = np.array([grid[place]])
        for nothing in ("SRZ", "SR_TID.Y", "SR_TID.Z", "SR_CgaCtaId", "SR_SWINHI"):
            self.special[nothing] = _ZERO


class Operands:
    """Registers and predicates; None is what is not known."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.active: Predicate | None = None
        """Threads that run the instruction at hand; None for all."""
        self._registers: dict[str, Value | None] = {}
        self._predicates: dict[str, Predicate | None] = {}

    def value(self, operand: str) -> Value | None:
        """32 bits of a register, a constant or a number as written, with its sign."""
        if operand in self._registers:
            return self._registers[operand]
        sign, absolute, text = _taken_apart(operand)
        known = self._plain(text)
        if known is None:
            return None
        if absolute:
            known = np.abs(integers.signed(known)) & MASK
        return -known & MASK if sign == "-" else ~known & MASK if sign == "~" else known

    def values(self, operands: Sequence[str]) -> list[Value] | None:
        """Of several, if all are known."""
        return _all(map(self.value, operands))

    def predicates(self, operands: Sequence[str]) -> list[Predicate] | None:
        """The same of predicates."""
        return _all(map(self.predicate, operands))

    def wide(self, operand: str) -> Value | None:
        """64 bits, as a signed number: of two registers or parameters side by side, or of a number as written."""
        sign, _, text = _taken_apart(operand.replace(".64", ""))
        narrow = text in ("RZ", "URZ") or text.startswith("0x")
        low = self._plain(text)
        if low is None:  # as are constants of other banks, whose neighbours have no names here
            return None
        high = _ZERO if narrow else self._plain(further(text, 4 if text.startswith("c") else 1))
        if high is None:
            return None
        known = integers.joined(low, high)
        return -known if sign == "-" else ~known if sign == "~" else known

    def address(self, operand: str) -> Value | None:
        """Of ``[R1+UR2+0x10]``, ``desc[UR4][R2.64+0x10]`` and the like."""
        inside = operand[operand.rindex("[") + 1 : operand.rindex("]")]
        total: Value = _ZERO
        for part in inside.replace("+-", "+~-").split("+"):
            part = part.lstrip("~")
            if part.startswith(("0x", "-0x")):
                known: Value | None = np.array([int(part, 16)])
            else:
                known = self.wide(part) if part.endswith(".64") else self.value(part.replace(".U32", ""))
            if known is None:
                return None
            total = total + known
        return total

    def predicate(self, operand: str) -> Predicate | None:
        """Of ``P0``, ``!UP1`` and the like."""
        name = operand.lstrip("!")
        known = TRUE if name in ("PT", "UPT") else self._predicates.get(name)
        return known if known is None or not operand.startswith("!") else ~known

    def set_predicate(self, operand: str, value: Predicate | None, guard: Predicate | None) -> None:
        """Where the guard holds, of the threads that run."""
        if operand not in ("PT", "UPT"):
            self._set(self._predicates, operand, value, guard)

    def set_value(self, operand: str, value: Value | None, guard: Predicate | None) -> None:
        """The same of a register."""
        if operand not in ("RZ", "URZ"):
            self._set(self._registers, operand, value, guard)

    def set_wide(self, operand: str, value: Value | None, guard: Predicate | None) -> None:
        """The same of two registers side by side."""
        low, high = (None, None) if value is None else integers.pair(value)
        self.set_value(operand, low, guard)
        self.set_value(further(operand), high, guard)

    def forget(self, instruction: Instruction) -> None:
        """What the instruction writes is not known any more, whether it was written or not."""
        predicates, registers = instruction.written
        for predicate in predicates:
            self._predicates[predicate] = None
        for register in registers:
            self._registers[register] = None

    def _set(self, known: dict[str, Any], name: str, new: Any, guard: Predicate | None) -> None:
        if new is None or guard is None:  # it may have been written or not
            known[name] = None
            return
        if guard is TRUE and self.active is None:
            known[name] = new
            return
        where = guard if self.active is None else guard & self.active
        before = known.get(name)
        # Of uniform registers and predicates only those warps make use that wrote them.
        unused = name.startswith("U") and before is None
        if where.all() or unused or name not in known:
            known[name] = new
        elif before is not None:
            known[name] = np.where(where, new, before)

    def _plain(self, text: str) -> Value | None:
        if text in self._registers:
            return self._registers[text]
        if text in ("RZ", "URZ"):
            return _ZERO
        constant = _constant(text)
        return _number(text) if constant is None else self._loaded(*constant)

    def _loaded(self, register: str, offset: int) -> Value | None:
        """A constant, at an offset from what a register holds."""
        if register not in ("RZ", "URZ"):
            index = self.value(register)
            if index is None or index.min() != index.max():
                return None
            offset += int(index[0])
        known = self.threads.constants.get(offset)
        return None if known is None else np.array([known])


def _all(values: Iterable[Any]) -> list[Any] | None:
    """The values, if all are known; what follows an unknown one is not computed."""
    known = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return known


@cache
def _taken_apart(operand: str) -> tuple[str, bool, str]:
    """Sign, whether the absolute value is meant, and the name or number."""
    sign = operand[0] if operand[0] in "~-" and not operand[1:2].isdigit() else ""
    text = operand[len(sign) :]
    absolute = text.startswith("|")
    return sign, absolute, text.strip("|")


@cache
def _number(text: str) -> Value | None:
    try:
        return np.array([int(text, 16 if "0x" in text else 10) & MASK])
    except ValueError:
        return None


@cache
def _constant(text: str) -> tuple[str, int] | None:
    """Register and offset of a constant."""
    found = _CONSTANT.match(text)
    return (found[2] or "RZ", int(found[1]) * BANK + int(found[3] or "0", 16)) if found else None


@cache
def further(operand: str, distance: int = 1) -> str:
    """The register so many further on, or the constant so many bytes."""
    if found := _CONSTANT.match(operand):
        return f"c[0x{found[1]}][{found[2] or 'RZ'}+{int(found[3] or '0', 16) + distance:#x}]"
    register = REGISTER.match(operand)
    if register is None:
        raise ValueError(f"{operand} is no register")
    return operand if register[2] == "Z" else f"{register[1]}{int(register[2]) + distance}"
