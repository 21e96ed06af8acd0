"""Constants that an instruction names by bank and offset."""

import struct

from crossmae_kernels.audit.kernel_file import _literals
from crossmae_kernels.audit.operands import BANK, Operands, Threads

THREADS = Threads(32, {0x160: 7, 2 * BANK: 0x180, 2 * BANK + 4: 1}, (0, 0, 0), (1, 1, 1))


def test_banks_are_told_apart():
    operands = Operands(THREADS)
    assert operands.value("c[0x0][0x160]") == [7]
    assert operands.value("c[0x2][0x0]") == [0x180]
    assert operands.wide("c[0x2][0x0]") == [(1 << 32) + 0x180]
    assert operands.value("c[0x2][0x160]") is None


def elf(sections):
    """A file of these sections and their names, without anything else."""
    names = b"\0".join(name.encode() for name in ("", *sections, ".names")) + b"\0"
    contents, headers, at = b"", b"", 0x40
    for name, content in {**sections, ".names": names}.items():
        headers += struct.pack("<IIQQQQ", names.index(name.encode()), 0, 0, 0, at + len(contents), len(content))
        contents += content
    count = len(sections) + 1
    head = bytes(0x28) + struct.pack("<Q", at + len(contents)) + bytes(10) + struct.pack("<HHH", 40, count, count - 1)
    return head + contents + headers


def test_literals_are_read_from_their_section():
    file = elf({".nv.constant0.kernel": bytes(8), ".nv.constant2.kernel": struct.pack("<II", 0x180, 3)})
    assert _literals(file) == {0: 0x180, 4: 3}
