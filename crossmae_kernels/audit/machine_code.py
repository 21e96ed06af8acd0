"""Machine code of NVIDIA GPUs as instructions, read from the disassembler's text.

The upper bits of each instruction say when it may issue, as the assembler scheduled it: cycles until the next one, and
barriers that it sets or waits for (Jia et al., arXiv 1804.06826, section 2.1, whose layout every architecture since
Volta has kept).
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

# Where stalls and barriers lie in the upper half of an encoding: bits 105 to 121 of 128.
_CONTROL = 41


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel."""

    address: int
    opcode: str
    """With its modifiers, as ``LDG.E.128``."""
    operands: tuple[str, ...]
    guard: str
    """Predicate that it runs under, as ``P0`` or ``!UP1``; empty if always."""
    line: str
    """``file:line`` of the source, where the line table tells."""
    stall: int
    """Cycles until the next instruction of the warp may issue."""
    writes: int
    """Barrier that is released when the result is there; 7 for none."""
    reads: int
    """Barrier that is released when the operands are read; 7 for none."""
    waits: tuple[int, ...]
    """Barriers that it waits for."""

    @cached_property
    def name(self) -> str:
        """Without modifiers."""
        return self.opcode.partition(".")[0]

    @cached_property
    def modifiers(self) -> frozenset[str]:
        """Without the name."""
        return frozenset(self.opcode.split(".")[1:])

    @cached_property
    def bytes(self) -> int:
        """Bytes that each thread loads or stores."""
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "256": 32}
        named = [bytes for modifier, bytes in widths.items() if modifier in self.modifiers]
        return max(named, default=4)

    @cached_property
    def written(self) -> tuple[list[str], list[str]]:
        """Predicates that it may write, with which its operands begin, and registers, which follow."""
        predicates = list(takewhile(is_predicate, self.operands))
        first = REGISTER.match([*self.operands[len(predicates) :], ""][0])
        if first is None or first[2] == "Z":
            return predicates, []
        return predicates, [f"{first[1]}{int(first[2]) + place}" for place in range(_registers(self))]


REGISTER = re.compile(r"^(U?R)(Z|\d+)$")


def is_predicate(operand: str) -> bool:
    """Whether it is ``P0``, ``!UPT`` or the like."""
    return operand.lstrip("!")[:2] in ("P0", "P1", "P2", "P3", "P4", "P5", "P6", "PT", "UP")


def _registers(instruction: Instruction) -> int:
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


_LINE = re.compile(r'//## File "([^"]*)", line (\d+)')
_LABEL = re.compile(r"^(\.L_x_\d+):")
_FIRST_HALF = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?(\S+?)\s*(\s.*?)?;?\s*/\* 0x[0-9a-f]{16} \*/")
_SECOND_HALF = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")


def parse(text: str) -> list[Instruction]:
    """Instructions of ``nvdisasm -hex -g``'s text, which is that of one kernel; labels become addresses.

    Raises:
        ValueError: where nothing could be read.
    """
    rows: list[tuple[int, str, str, tuple[str, ...], str, int]] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    line, half = "", None
    for row in text.splitlines():
        if found := _SECOND_HALF.match(row):
            if half is not None:
                rows.append((*half, line, int(found[1], 16) >> _CONTROL))
            half = None
        elif found := _FIRST_HALF.match(row):
            address = int(found[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting = []
            half = (address, found[2] or "", found[3].rstrip(";"), _split(found[4] or ""))
        elif found := _LABEL.match(row):
            waiting.append(found[1])
        elif found := _LINE.search(row):
            line = f"{found[1]}:{found[2]}"
    if not rows:
        raise ValueError("the disassembler's output could not be read")
    return [
        Instruction(
            address,
            opcode,
            tuple(_resolved(operand, labels) for operand in operands),
            guard,
            line,
            control & 15,
            control >> 5 & 7,
            control >> 8 & 7,
            tuple(b for b in range(6) if control >> 11 >> b & 1),
        )
        for address, guard, opcode, operands, line, control in rows
    ]


def _split(operands: str) -> tuple[str, ...]:
    return tuple(operand.strip().replace(".reuse", "") for operand in operands.split(",")) if operands.strip() else ()


def _resolved(operand: str, labels: dict[str, int]) -> str:
    """An address in place of a label; names of subroutines stay."""
    found = re.search(r"`\((\S+?)\)", operand)
    return hex(labels[found[1]]) if found and found[1] in labels else operand
