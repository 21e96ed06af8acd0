"""What the assembler wrote beside the machine code: registers, stack and threads, parameters' places, and literals.

A cubin is an ELF file. The section ``.nv.info.<kernel>`` lists a kernel's attributes as (format, attribute, size), and
``.nv.info`` those that a linker asks for, of each kernel by its symbol. ``.nv.constant2.<kernel>`` has the literals
that Ampere's instructions have no room for.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SIZED, _PARAMETERS_AT, _THREADS, _STACK, _PARAMETER, _REGISTERS = 4, 0x0A, 0x10, 0x11, 0x17, 0x2F


@dataclass(frozen=True)
class KernelFile:
    """Of a cubin with one kernel."""

    threads: int
    """Of a program."""
    parameters: tuple[tuple[int, int], ...]
    """Offset in constant bank 0 and bytes of each, in order."""
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of local memory of a thread, where registers are spilled to."""
    literals: dict[int, int]
    """Constant bank 2: 32-bit words by their offset in bytes."""


def read(cubin: bytes) -> KernelFile:
    """Read a cubin's attributes.

    Raises:
        ValueError: where it is no such file.
    """
    base, threads, registers, stack, parameters = 0, 0, 0, 0, {}
    for attribute, value in _attributes(cubin):
        if attribute == _PARAMETERS_AT:
            base = struct.unpack_from("<H", value, 4)[0]
        elif attribute == _THREADS:
            threads = struct.unpack_from("<I", value)[0]
        elif attribute == _REGISTERS:
            registers = struct.unpack_from("<I", value, 4)[0]
        elif attribute == _STACK:
            stack = struct.unpack_from("<I", value, 4)[0]
        elif attribute == _PARAMETER:
            _, ordinal, offset, layout = struct.unpack_from("<IHHI", value)
            parameters[ordinal] = (offset, layout >> 18)
    if not base or not threads or not registers:
        raise ValueError("the cubin does not tell parameters, threads and registers of a kernel")
    ordered = (parameters[ordinal] for ordinal in sorted(parameters))
    places = tuple((base + offset, size) for offset, size in ordered)
    return KernelFile(threads, places, registers, stack, _literals(cubin))


def _literals(cubin: bytes) -> dict[int, int]:
    banks = [section for name, section in _sections(cubin) if name.startswith(".nv.constant2.")]
    return {4 * place: word for bank in banks for place, (word,) in enumerate(struct.iter_unpack("<I", bank))}


def _attributes(cubin: bytes) -> Iterator[tuple[int, bytes]]:
    for name, section in _sections(cubin):
        at = 0
        while name.startswith(".nv.info") and at < len(section):
            form, attribute, size = struct.unpack_from("<BBH", section, at)
            if form == _SIZED:
                yield attribute, section[at + 4 : at + 4 + size]
                at += size
            at += 4


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and contents of each section (ELF64, little endian)."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + place * size) for place in range(count)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        yield elf[start : elf.index(b"\0", start)].decode(), elf[offset : offset + length]
