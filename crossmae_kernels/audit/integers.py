"""What integer instructions compute, for all threads of a program at once.

A value is an int64 array, of one element where all threads have the same or else of one for each thread, that holds the
32 bits of a register as a non-negative number; a predicate is an array of Booleans. Two registers side by side are the
pair (low, high). Named are the instructions that loops, addresses and predicates of Triton's kernels are made of, on
sm_80 to sm_120; what is not here is not known and is never guessed (``emulation.py``).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = NDArray[np.int64]
Predicate = NDArray[np.bool_]

MASK = 0xFFFFFFFF


def signed(value: Value) -> Value:
    """The same 32 bits as two's complement."""
    return (value ^ 0x80000000) - 0x80000000


def pair(value: Value) -> tuple[Value, Value]:
    """The 64 bits of an int64 as (low, high)."""
    return value & MASK, value >> 32 & MASK


def joined(low: Value, high: Value) -> Value:
    """(low, high) as an int64, of which the uppermost bit may be set."""
    return low | high << 32


def shifted(name: frozenset[str], a: Value, count: Value, c: Value) -> Value:
    """``SHF``: the pair (a, c) moved left or right, of which one half is kept."""
    count = count & 31 if "W" in name else np.minimum(count, 32)
    if "L" in name:
        low = np.where(count == 32, 0, a << count) & MASK
        if "HI" not in name:
            return low
        carried = np.where(count == 0, 0, a >> (32 - count))
        return (np.where(count == 32, 0, c << count) | carried) & MASK
    if "HI" in name:
        return (signed(c) if "S32" in name or "S64" in name else c) >> np.minimum(count, 63) & MASK
    above = np.where(count == 0, 0, c << (32 - count))
    return (np.where(count == 32, 0, a >> np.minimum(count, 63)) | above) & MASK


def scaled_sum(name: frozenset[str], a: Value, b: Value, c: Value, shift: int, carry: Value) -> tuple[Value, Predicate]:
    """``LEA``: a times a power of two, plus b; with HI the upper half of the pair (a, c) so scaled. And the carry."""
    if "HI" not in name:
        total = (a << shift & MASK) + b + carry
    else:
        upper = signed(a) >> 31 if "SX32" in name else c
        total = (((upper << shift) | (a >> (32 - shift) if shift else 0)) & MASK) + b + carry
    return total & MASK, total > MASK


def logic(table: int, a: Value, b: Value, c: Value) -> Value:
    """``LOP3``: a function of three bits, of which bit 4 a + 2 b + c of the table is the result."""
    result = np.zeros(1, np.int64)
    for row in range(8):
        if table >> row & 1:
            bits = a if row & 4 else ~a
            bits = bits & (b if row & 2 else ~b)
            result = result | bits & (c if row & 1 else ~c)
    return result & MASK


def permuted(a: Value, selector: Value, c: Value) -> Value:
    """``PRMT``: four of the eight bytes of the pair (a, c), or copies of their signs."""
    both, result = joined(a, c), np.zeros(1, np.int64)
    for place in range(4):
        chosen = selector >> 4 * place & 15
        byte = both >> 8 * (chosen & 7) & 255
        byte = np.where(chosen & 8, np.where(byte & 128, 255, 0), byte)
        result = result | byte << 8 * place
    return result


def narrowed(name: frozenset[str], a: Value, width: Value) -> Value:
    """``SGXT``: the lowest bits, extended by their sign or, with U32, by zeros."""
    width = np.minimum(width, 32)
    low = a & ((1 << width) - 1)
    if "U32" in name:
        return low
    top = np.where(width > 0, 1 << np.maximum(width - 1, 0), 0)
    return (low ^ top) - top & MASK


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}


def compared(name: frozenset[str], a: Value, b: Value, below: Predicate) -> Predicate:
    """``ISETP``; with EX of the upper halves, where ``below`` is the outcome for the lower ones."""
    if "U32" not in name:
        a, b = signed(a), signed(b)
    (kind,) = (kind for kind in COMPARISONS if kind in name)
    if "EX" not in name:
        return COMPARISONS[kind](a, b)
    if kind in ("EQ", "NE"):
        return COMPARISONS[kind](a, b) & below if kind == "EQ" else (a != b) | below
    strict = np.less if kind in ("LT", "LE") else np.greater
    return strict(a, b) | (a == b) & below


def combined(name: frozenset[str], a: Predicate, b: Predicate) -> Predicate:
    """An outcome and one more predicate."""
    return a | b if "OR" in name else a ^ b if "XOR" in name else a & b


def as_float(value: Value) -> NDArray[np.float32]:
    """The float32 of these bits."""
    return value.astype(np.uint32).view(np.float32)


def bits_of(number: NDArray[np.float32]) -> Value:
    """The bits of a float32."""
    return number.astype(np.float32).view(np.uint32).astype(np.int64)
