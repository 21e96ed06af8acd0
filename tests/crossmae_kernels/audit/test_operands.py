"""What operands of instructions are known to hold."""

import pytest

from crossmae_kernels.audit.operands import Operands, Threads

OPERANDS = Operands(Threads(32, {0x210: 7, 0x214: 1}, (0, 0, 0), (1, 1, 1)))


@pytest.mark.parametrize(
    ("operand", "expected"), [("c[0x0][0x210]", (1 << 32) + 7), ("-c[0x0][0x210]", -(1 << 32) - 7), ("0x5", 5)]
)
def test_64_bits_of_parameters_and_numbers(operand, expected):
    assert OPERANDS.wide(operand).tolist() == [expected]


@pytest.mark.parametrize("operand", ["c[0x2][0x0]", "c[0x0][0x220]", "R4"])
def test_what_nobody_wrote_is_unknown(operand):
    """The compiler's own constants, which Triton 3.6 makes for Ampere, are in a bank of theirs."""
    assert OPERANDS.wide(operand) is None
    assert OPERANDS.value(operand) is None
