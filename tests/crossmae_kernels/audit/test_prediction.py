"""What is known of a launch from its machine code, where it is known otherwise too."""

import json
from types import SimpleNamespace

import pytest
from uninterpreted import run

# In a file, since Triton reads the source of its kernels.
PROGRAM = """
import json
import os

# Code from a cache would know the path of another test's program.
os.environ["TRITON_CACHE_DIR"] = os.path.dirname(__file__)

import torch
import triton
import triton.language as tl

from crossmae_kernels.audit.budgets import figures, growth
from crossmae_kernels.audit.compilation import compile_launch
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.prediction import predict
from crossmae_kernels.audit.recording import record


@triton.jit
def sum_kernel(x, y, out, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, AGAIN: tl.constexpr, TURNED: tl.constexpr):
    for tile in range(tl.program_id(0), rows // BLOCK, tl.num_programs(0)):
        row, column = tile * BLOCK + tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
        places = column * rows + row if TURNED else row * WIDTH + column
        values = tl.load(x + places) * 2
        if AGAIN:
            tl.debug_barrier()
            values += tl.load(x + places, volatile=True)
        tl.store(out + row * WIDTH + column, values + tl.load(y + row * WIDTH + column))


ROWS, WIDTH = 4096, 256


def figures_of(device="h100", block=16, again=False, turned=False, programs=128, rows=ROWS, **options):
    where = DEVICES[device]
    with record(where.limits) as launches:
        x = torch.empty(rows, WIDTH, dtype=torch.bfloat16)
        sum_kernel[(programs,)](
            x, torch.empty_like(x), torch.empty_like(x), rows, WIDTH=WIDTH, BLOCK=block, AGAIN=again, TURNED=turned,
            **options,
        )
    kernel = compile_launch(launches[0], where.limits.capability)
    prediction = predict(launches[0], kernel, where)
    stores = sum(instruction.name == "STG" for instruction in kernel.code)
    return figures(kernel, prediction) | {"floor": prediction.floor, "stores": stores}


plain = figures_of()
print(json.dumps({
    "plain": plain,
    "ampere": figures_of("a100"),
    "fewer programs": figures_of(programs=64),
    "many programs": figures_of(block=4, programs=2**16, rows=2**18),
    "again": growth(plain, figures_of(again=True)),
    "turned": growth(plain, figures_of(turned=True)),
    "spilled": growth(plain, figures_of(block=128, maxnreg=32)),
    "itself": growth(plain, plain),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("prediction") / "program.py"
    file.write_text(PROGRAM)
    return json.loads(run(file))


def test_bytes_are_those_of_the_tensors(found):
    tensor = 4096 * 256 * 2
    for device in ("plain", "ampere", "fewer programs"):
        assert found[device]["requested"] == found[device]["moved"] == found[device]["floor"] == 3 * tensor


def test_of_a_tuple_each_program_may_want_another_tensor():
    from crossmae_kernels.audit.prediction import _bytes

    def program(**sectors):  # by region
        accesses = {
            place: SimpleNamespace(region=int(name[1:]), fetched=count)
            for place, (name, count) in enumerate(sectors.items())
        }
        return SimpleNamespace(accesses=accesses)

    # Eight programs read 64 sectors of 32 bytes each: of one of four tensors, each read twice, and of a table.
    seen = [program(_1=64, _9=64), program(_3=64, _9=64)]
    own, table = dict.fromkeys((1, 2, 3, 4), 2 * 64 * 32), {9: 1000}
    asked, moved = _bytes(seen, 8, [own, table])
    assert asked == {1: 4 * 64 * 32, 3: 4 * 64 * 32, 9: 8 * 64 * 32}
    assert moved == {1: 4 * 64 * 32, 3: 4 * 64 * 32, 9: 1000}
    asked, moved = _bytes(seen, 16, [own, table])
    assert sum(moved.values()) == sum(own.values()) + 1000


def test_loops_run_as_often_as_the_grid_tells(found):
    """256 tiles are two of each of 128 programs, or four of 64: what a tile takes is counted once more for each."""
    two, four = found["plain"]["instructions"], found["fewer programs"]["instructions"]
    assert two < four < 2 * two
    assert found["plain"]["microseconds"] < found["fewer programs"]["microseconds"]


def test_no_time_is_less_than_what_bandwidth_leaves(found):
    from crossmae_kernels.audit.devices import DEVICES

    for name, device in (("plain", DEVICES["h100"]), ("ampere", DEVICES["a100"])):
        least = found[name]["moved"] / (device.bandwidth * 1e3)
        assert least < found[name]["microseconds"] < 10 * least + device.launch


def test_many_short_programs_take_what_bandwidth_leaves(found):
    """The first of them all wait for memory at once, which those that follow do not."""
    from crossmae_kernels.audit.ceilings import bandwidth
    from crossmae_kernels.audit.devices import DEVICES

    moving = 3 * 2**18 * 256 * 2 / bandwidth(DEVICES["h100"])
    assert 1 < found["many programs"]["microseconds"] / moving < 1.08


def test_planted_regressions_are_caught_and_placed(found):
    """An operand loaded twice, a load along columns of a row-major tensor, and a tile that registers do not hold."""
    assert found["itself"] == []
    again, turned, spilled = ("; ".join(found[name]) for name in ("again", "turned", "spilled"))
    assert "instructions" in again
    assert "volatile=True" in again
    # The compiler turns it in shared memory.
    assert "shared 0 -> " in turned
    assert "spilled 0 -> " in spilled
