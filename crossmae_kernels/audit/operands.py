"""Registers of all threads of a program, and the instructions that change what is known of them."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from crossmae_kernels.audit import integers
from crossmae_kernels.audit.integers import MASK, Predicate, Value
from crossmae_kernels.audit.machine_code import Instruction

_REGISTER = re.compile(r"^(U?R)(Z|\d+)$")
# A parameter, at an offset that may be a register's, as of a tuple of pointers; in bank 2 a literal.
_CONSTANT = re.compile(r"^c\[0x([02])\]\[(?:(U?R(?:Z|\d+))\+?)?(0x[0-9a-f]+)?\]$")
BANK = 1 << 16
"""Bytes of a constant bank; the words of bank 2 lie behind those of two banks."""
_ZERO: Value = np.zeros(1, np.int64)
_TRUE: Predicate = np.ones(1, bool)


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
        sign, absolute, text = _taken_apart(operand)
        known = self._plain(text)
        if known is None:
            return None
        if absolute:
            known = np.abs(integers.signed(known)) & MASK
        return -known & MASK if sign == "-" else ~known & MASK if sign == "~" else known

    def values(self, operands: Sequence[str]) -> list[Value] | None:
        """Of several, if all are known."""
        known = [value for value in map(self.value, operands) if value is not None]
        return known if len(known) == len(operands) else None

    def predicates(self, operands: Sequence[str]) -> list[Predicate] | None:
        """The same of predicates."""
        known = [value for value in map(self.predicate, operands) if value is not None]
        return known if len(known) == len(operands) else None

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
        known = _TRUE if name in ("PT", "UPT") else self._predicates.get(name)
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

    def forget(self, instruction: Instruction, guard: Predicate | None) -> None:
        """What the instruction writes is not known any more."""
        for operand in instruction.operands:
            if is_predicate(operand):
                self.set_predicate(operand, None, guard)
                continue
            if _REGISTER.match(operand):
                for place in range(_written(instruction)):
                    self.set_value(further(operand, place), None, guard)
            return

    def _set(self, known: dict[str, Any], name: str, new: Any, guard: Predicate | None) -> None:
        if guard is None:  # it may have been written or not
            new, guard = None, _TRUE
        where = guard if self.active is None else guard & self.active
        # Of uniform registers and predicates only those warps make use that wrote them.
        unused = name.startswith("U") and known.get(name) is None
        if where.all() or unused or name not in known:
            known[name] = new
        elif new is None or known[name] is None:
            known[name] = None
        else:
            known[name] = np.where(where, new, known[name])

    def _plain(self, text: str) -> Value | None:
        if text in ("RZ", "URZ"):
            return _ZERO
        if found := _CONSTANT.match(text):
            return self._constant(found[2] or "RZ", int(found[1]) * BANK + int(found[3] or "0", 16))
        if text in self._registers:
            return self._registers[text]
        number = _number(text)
        return None if number is None else np.array([number])

    def _constant(self, register: str, offset: int) -> Value | None:
        index = self.value(register)
        if index is None or index.min() != index.max():
            return None
        known = self.threads.constants.get(int(index[0]) + offset)
        return None if known is None else np.array([known])


@cache
def _taken_apart(operand: str) -> tuple[str, bool, str]:
    """Sign, whether the absolute value is meant, and the name or number."""
    sign = operand[0] if operand[0] in "~-" and not operand[1:2].isdigit() else ""
    text = operand[len(sign) :]
    absolute = text.startswith("|")
    return sign, absolute, text.strip("|")


@cache
def _number(text: str) -> int | None:
    try:
        return int(text, 16 if "0x" in text else 10) & MASK
    except ValueError:
        return None


@cache
def further(operand: str, distance: int = 1) -> str:
    """The register so many further on, or the constant so many bytes."""
    if found := _CONSTANT.match(operand):
        return f"c[0x{found[1]}][{found[2] or 'RZ'}+{int(found[3] or '0', 16) + distance:#x}]"
    register = _REGISTER.match(operand)
    if register is None:
        raise ValueError(f"{operand} is no register")
    return operand if register[2] == "Z" else f"{register[1]}{int(register[2]) + distance}"


def is_predicate(operand: str) -> bool:
    """Whether it is ``P0``, ``!UPT`` or the like."""
    return operand.lstrip("!")[:2] in ("P0", "P1", "P2", "P3", "P4", "P5", "P6", "PT", "UP")


def _written(instruction: Instruction) -> int:
    """How many registers an instruction writes at most."""
    name, modifiers = instruction.name, instruction.modifiers
    if name in ("HGMMA", "QGMMA", "IGMMA"):
        (shape,) = (modifier for modifier in modifiers if modifier.startswith("64x"))
        return int(shape.split("x")[1]) // 2
    if name in ("HMMA", "IMMA", "QMMA"):
        return 4
    if name == "LDTM":
        return max(int(modifier[1:]) for modifier in modifiers if re.fullmatch(r"x\d+", modifier))
    if name == "LDSM":
        return 4 if "4" in modifiers else 2
    if name in ("LDG", "LDS", "LDL", "LDC", "ULDC", "LDCU", "LD"):
        return max(1, instruction.bytes // 4)
    return 2 if modifiers & {"WIDE", "64", "F64"} or name in ("CS2R", "F2F", "I2F", "F2I", "DADD", "DMUL") else 1
