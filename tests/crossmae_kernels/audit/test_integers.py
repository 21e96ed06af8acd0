"""Integer instructions, against what Python's own integers say."""

import random

import numpy as np
import pytest

from crossmae_kernels.audit import integers

MASK = 0xFFFFFFFF
EDGES = [0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, MASK]


def values(count, seed):
    draw = random.Random(seed)
    return [draw.choice(EDGES) if draw.random() < 0.3 else draw.getrandbits(32) for _ in range(count)]


def array(numbers):
    return np.array(numbers, np.int64)


def signed(number):
    return number - (1 << 32) if number >> 31 else number


A, B, C = (values(200, seed) for seed in range(3))


@pytest.mark.parametrize("table", [0x80, 0xC0, 0xFC, 0x96, 0x33, 0x1B])
def test_logic_by_table(table):
    def bit(a, b, c, place):
        return table >> ((a >> place & 1) << 2 | (b >> place & 1) << 1 | (c >> place & 1)) & 1

    expected = [sum(bit(a, b, c, place) << place for place in range(32)) for a, b, c in zip(A, B, C, strict=True)]
    assert integers.logic(table, array(A), array(B), array(C)).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 7, 31, 32])
def test_shifts_of_pairs(count):
    def shifted(*modifiers):
        return integers.shifted(frozenset(modifiers), array(A), array([count]), array(C)).tolist()

    pairs = [c << 32 | a for a, c in zip(A, C, strict=True)]
    assert shifted("L", "U32") == [a << count & MASK for a in A]
    assert shifted("L", "U64", "HI") == [pair << count >> 32 & MASK for pair in pairs]
    assert shifted("R", "U64") == [pair >> count & MASK for pair in pairs]
    assert shifted("R", "U32", "HI") == [c >> count for c in C]
    assert shifted("R", "S32", "HI") == [signed(c) >> count & MASK for c in C]


@pytest.mark.parametrize("shift", [1, 2, 7, 25])
def test_scaled_sums(shift):
    def scaled(*modifiers, carry=0):
        total, over = integers.scaled_sum(
            frozenset(modifiers), array(A), array(B), array(C), shift, array([carry])
        )  # fmt: skip
        return total.tolist(), over.tolist()

    low = [(a << shift & MASK) + b for a, b in zip(A, B, strict=True)]
    assert scaled() == ([s & MASK for s in low], [s > MASK for s in low])
    high = [((c << 32 | a) << shift >> 32 & MASK) + b + 1 for a, b, c in zip(A, B, C, strict=True)]
    assert scaled("HI", "X", carry=1)[0] == [s & MASK for s in high]
    extended = [(signed(a) << shift >> 32 & MASK) + b for a, b in zip(A, B, strict=True)]
    assert scaled("HI", "SX32")[0] == [s & MASK for s in extended]


def test_bytes_are_picked_and_signs_repeated():
    def picked(a, selector, c):
        both, result = (c << 32 | a).to_bytes(8, "little"), []
        for place in range(4):
            chosen = selector >> 4 * place & 15
            byte = both[chosen & 7]
            result.append((255 if byte & 128 else 0) if chosen & 8 else byte)
        return int.from_bytes(bytes(result), "little")

    selectors = [b & 0xFFFF for b in B]
    expected = [picked(*row) for row in zip(A, selectors, C, strict=True)]
    assert integers.permuted(array(A), array(selectors), array(C)).tolist() == expected


@pytest.mark.parametrize("width", [1, 5, 31, 32])
def test_sign_extension(width):
    low = [a & ((1 << width) - 1) for a in A]
    assert integers.narrowed(frozenset({"U32"}), array(A), array([width])).tolist() == low
    extended = [(v - (1 << width) if v >> width - 1 else v) & MASK for v in low]
    assert integers.narrowed(frozenset(), array(A), array([width])).tolist() == extended


@pytest.mark.parametrize("kind", ["LT", "LE", "GT", "GE", "EQ", "NE"])
def test_comparisons_of_64_bits_in_two_steps(kind):
    low, high = [value % 3 for value in A], [value % 3 | (value & 0x80000000) for value in B]
    other_low, other_high = [value % 3 for value in C], [value % 3 | (value & 0x80000000) for value in A]
    below = integers.compared(frozenset({kind, "U32"}), array(low), array(other_low), np.array([True]))
    found = integers.compared(frozenset({kind, "EX"}), array(high), array(other_high), below)
    wide = [signed(upper) << 32 | lower for upper, lower in zip(high, low, strict=True)]
    others = [signed(upper) << 32 | lower for upper, lower in zip(other_high, other_low, strict=True)]
    compare = integers.COMPARISONS[kind]
    assert found.tolist() == [bool(compare(a, b)) for a, b in zip(wide, others, strict=True)]
