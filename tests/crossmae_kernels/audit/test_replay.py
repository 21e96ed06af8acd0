"""Warps on one multiprocessor, in code short enough to tell its cycles by hand."""

import pytest

from crossmae_kernels.audit.devices import DEVICES, L2_LATENCY, SHARED_LATENCY, TENSOR_LATENCY
from crossmae_kernels.audit.emulation import Access, Trace
from crossmae_kernels.audit.machine_code import Instruction, parse
from crossmae_kernels.audit.replay import replay

H100 = DEVICES["h100"]


def instruction(opcode, *operands, stall=1, writes=7, waits=()):
    return Instruction(0, opcode, operands, "", "", stall, writes, 7, waits)


def played(code, warps=1, resident=1, programs=1, accesses=(), dram=0.0):
    doing = dict.fromkeys(range(len(code)), frozenset(range(warps)))
    trace = Trace(warps, steps=list(range(len(code))), accesses=dict(accesses), doing=doing)
    return replay(code, trace, H100, resident, programs, {1: dram}, H100.limits.multiprocessors)


def test_stalls_are_the_assemblers():
    code = [instruction("FFMA", stall=4) for _ in range(10)]
    assert played(code).ends == (40,)
    # Four warps have a scheduler each; the fifth shares one and fits between.
    assert played(code, warps=4).ends == (40,)
    assert played(code, warps=5).ends == (41,)


def test_a_scheduler_issues_one_instruction_a_cycle():
    code = [instruction("FFMA") for _ in range(100)]
    assert played(code, warps=4).ends[0] == pytest.approx(100, abs=1)
    assert played(code, warps=8).ends[0] == pytest.approx(200, abs=1)
    assert played(code, warps=8).instructions == 800


@pytest.mark.parametrize(("opcode", "cycles"), [("FFMA", 1), ("IADD3", 2), ("IMAD", 2), ("MUFU.EX2", 8)])
def test_pipes_take_their_time(opcode, cycles):
    found = played([instruction(opcode) for _ in range(200)], warps=8)
    assert found.ends[0] == pytest.approx(400 * cycles, rel=0.05)
    assert max(found.busy.values()) == 400 * max(cycles, 1)


def test_a_result_is_waited_for():
    code = [instruction("LDS", "R0", "[R1]", writes=0), instruction("FADD", waits=(0,))]
    assert played(code).ends == (SHARED_LATENCY + 1,)
    assert played([*code[:1], instruction("FADD")]).ends == (2,)


def test_tensor_cores_and_what_their_operands_take_of_shared_memory():
    """64 x 128 x 16 takes 64 cycles; four warps are one product, which reads 6 KiB."""
    code = [instruction("HGMMA.64x128x16.F32.BF16", "R0", "gdesc[UR0]", "R0") for _ in range(8)]
    code[-1] = instruction("HGMMA.64x128x16.F32.BF16", "R0", "gdesc[UR0]", "R0", "gsb0")
    code.append(instruction("WARPGROUP.DEPBAR.LE", "gsb0", "0x0"))
    found = played(code, warps=4)
    assert found.ends[0] == pytest.approx(8 * 64 + TENSOR_LATENCY, abs=2)
    assert found.busy["tensor cores"] == 8 * 64
    assert found.busy["shared memory"] == 8 * 6144 / 128
    assert played(code, warps=8).ends[0] == pytest.approx(16 * 64 + TENSOR_LATENCY, abs=2)


def test_a_barrier_waits_for_all_warps():
    code = [instruction("MUFU.EX2", writes=0) for _ in range(10)]
    code += [instruction("BAR.SYNC", "0x0", waits=(0,)), instruction("FADD")]
    # Warps 0 and 4 share a scheduler, whose exponentials take 160 cycles; the others are done in 80.
    together = played(code, warps=5)
    assert together.ends[0] > 160
    alone = Trace(2, steps=[0], running={0: frozenset({0})})
    with pytest.raises(ValueError, match=r"^1 of 1 programs wait for ever$"):
        replay([instruction("BAR.SYNC", "0x0", "0x40")], alone, H100, 1, 1, {}, 132)


def test_copies_are_awaited_by_group():
    copy = instruction("LDGSTS.E.BYPASS.128", "[R0]", "desc[UR0][R2.64]")
    commit, wait = instruction("LDGDEPBAR"), instruction("DEPBAR.LE", "SB0", "0x0")
    far = {0: Access(1, 16, 16)}
    assert played([copy, commit, wait], accesses=far).ends[0] == pytest.approx(L2_LATENCY, abs=20)
    one_may_be_late = instruction("DEPBAR.LE", "SB0", "0x1")
    assert played([copy, commit, one_may_be_late], accesses=far).ends[0] < 20 + 16 * 32 / H100.l2_bytes


def test_dram_delivers_its_share():
    code = [instruction("LDG.E.128", "R0", "desc[UR0][R2.64]") for _ in range(400)]
    found = played(code, accesses={step: Access(1, 16, 16) for step in range(400)}, dram=1.0)
    each = H100.bandwidth * H100.bandwidth_share / (H100.clock * H100.clock_share) / H100.limits.multiprocessors
    assert found.ends[0] == pytest.approx(400 * 512 / each, rel=0.01)
    assert found.busy["DRAM"] == pytest.approx(400 * 512 / each)


def test_programs_follow_one_another():
    code = [instruction("FFMA", stall=10) for _ in range(10)]
    found = played(code, resident=2, programs=6)
    assert len(found.ends) == 6
    assert found.ends[-1] == pytest.approx(300, abs=5)


DISASSEMBLED = """
.text.kernel:
	//## File "/package/kernels.py", line 7
        /*0000*/                   LDC.64 R2, c[0x0][0x210] ;     /* 0x00008400ff027b82 */
                                                                  /* 0x000e620000000a00 */
.L_x_0:
        /*0010*/              @!P1 LDG.E.128 R4, desc[UR4][R2.64+0x10] ;  /* 0x0000100402049981 */
                                                                  /* 0x002ea8000c1e1d00 */
        /*0020*/               @P0 BRA `(.L_x_0) ;                /* 0xfffffffc00f00947 */
                                                                  /* 0x000fea000383ffff */
"""


def test_text_of_the_disassembler():
    load_constant, load, jump = parse(DISASSEMBLED)
    assert load_constant.opcode == "LDC.64"
    assert load_constant.operands == ("R2", "c[0x0][0x210]")
    assert load_constant.line == "/package/kernels.py:7"
    assert (load_constant.stall, load_constant.writes, load_constant.reads) == (1, 1, 7)
    assert (load.guard, load.name, load.bytes, load.waits, load.writes) == ("!P1", "LDG", 16, (1,), 2)
    assert (jump.guard, jump.operands, jump.stall) == ("P0", ("0x10",), 5)
    with pytest.raises(ValueError, match=r"^the disassembler's output could not be read$"):
        parse("nothing")
