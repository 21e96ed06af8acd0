"""What a recording of launches holds."""

import json

import pytest
from uninterpreted import run

# In a file, since Triton reads the source of its kernels.
PROGRAM = """
import json

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

import crossmae_kernels as ck
from crossmae_kernels.audit.calls import Call
from crossmae_kernels.audit.cases import cases
from crossmae_kernels.audit.devices import USUAL
from crossmae_kernels.audit.recording import record
from crossmae_kernels.runtime.device import Limits
from crossmae_kernels.runtime.dispatch import form_of
from crossmae_kernels.testing import Draw, problems


@triton.jit(do_not_specialize=["count"])
def kernel(whole, part, several, absent, stride, one, far, odd, count, scale, WIDTH: tl.constexpr):
    pass


@triton.jit
def described_kernel(box):
    pass


def shown(launch):
    return {
        "kernel": launch.name,
        "types": launch.signature,
        "constants": launch.named_constants,
        "divisible": [place for place, promised in launch.attributes.items() if promised],
        "options": launch.options,
        "grid": launch.grid,
        "numbers": launch.numbers,
        "extents": launch.extents,
    }


def every_kind_of_argument():
    whole = torch.empty(8, 32, dtype=torch.bfloat16)
    several = whole, whole[:, 8:]
    kernel[(3, 2)](whole, whole[0, 1:], several, None, 32, 1, 2**31, 7, 16, 0.5, WIDTH=32, num_warps=8)
    described_kernel[(1,)](TensorDescriptor(whole, [8, 32], [32, 1], [8, 16]))


def leaf(*shape):
    return torch.empty(shape, requires_grad=True)


def two_ops():
    rows, keys = leaf(1, 147, 512), leaf(1, 50, 1024)
    with torch.autocast("cpu", torch.bfloat16), form_of("mlp", "tiled"):
        out = ck.mlp(
            rows, leaf(512), leaf(512), leaf(2048, 512), leaf(2048), leaf(512, 2048), leaf(512), impl="triton"
        )
        out = ck.cross_attention_kvpacked(out, keys, 16, impl="triton")
    out.sum().backward()
    assert rows.grad.shape == rows.shape


def every_op():
    for problem in problems.tiny(Draw()):
        # In float32, unless that is not served, and in bfloat16.
        for dtype in {problem.dtypes[0], problem.dtypes[-1]}:
            Call(problem).run(dtype)


def recorded(work, *limits):
    with record(Limits(*limits)) as launches:
        work()
    return [shown(launch) for launch in launches]


found = [recorded(every_kind_of_argument, 90, 1, 1)]
found += [recorded(two_ops, 86, 99 * 1024, 1), recorded(two_ops, 90, 227 * 1024, 132)]
found.append(sorted({launch["kernel"] for launch in recorded(every_op, 90, 227 * 1024, 132)}))
found.append(sorted({case.launch.name for case in cases(devices=[USUAL[90]], dtypes=["bf16"])}))
try:
    ck.cross_attention(torch.ones(1, 2, 16), torch.ones(1, 2, 16), torch.ones(1, 2, 16), 1, impl="triton")
except RuntimeError as error:
    print(json.dumps([*found, str(error)]))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    file = tmp_path_factory.mktemp("recording") / "program.py"
    file.write_text(PROGRAM)
    return json.loads(run(file))


def test_what_the_launcher_makes_of_arguments(recorded):
    launch, _ = recorded[0]
    assert launch == {
        "kernel": "kernel",
        "types": {
            "whole": "*bf16", "part": "*bf16", "several": ["*bf16", "*bf16"], "absent": "constexpr", "stride": "i32",
            "one": "constexpr", "far": "i64", "odd": "i32", "count": "i32", "scale": "fp32", "WIDTH": "constexpr",
        },
        "constants": {"absent": None, "one": 1, "WIDTH": 32},
        # 16 divides the addresses but for the part's, which begins at the second element; it divides the count too, and
        # nobody is told.
        "divisible": [[0], [2, 0], [2, 1], [4], [6]],
        "options": {"num_warps": 8},
        "grid": [3, 2],
        "numbers": {"stride": 32, "far": 2**31, "odd": 7, "count": 16, "scale": 0.5},
        "extents": {"whole": [512], "part": [62], "several": [512, 384]},
    }  # fmt: skip


def test_a_descriptor_made_on_the_host(recorded):
    _, launch = recorded[0]
    assert launch["types"] == {"box": "tensordesc<bf16[8, 16]>"}
    assert launch["constants"] == {}
    assert launch["extents"] == {"box": [512]}


def test_both_directions_of_several_ops_in_order(recorded):
    _, small, large, *_ = recorded
    kernels = [launch["kernel"] for launch in large]
    assert kernels == [
        "fold_forward_kernel", "normalize_kernel", "gemm_kernel", "gemm_kernel", "short_forward_kernel",
        "short_backward_kernel", "column_sums_kernel", "hidden_backward_kernel", "totals_kernel",
        "fold_backward_kernel", "normalize_backward_kernel",
    ]  # fmt: skip
    assert kernels == [launch["kernel"] for launch in small]
    # Two tiles of 128 rows, and 16 or 4 of 128 columns.
    assert [launch["grid"] for launch in large if launch["kernel"] == "gemm_kernel"] == [[32], [8]]
    assert large[2]["types"]["a"] == "*bf16"
    assert (large[3]["types"]["residual"], large[3]["numbers"]["num_rows"]) == ("*fp32", 147)


def test_limits_of_the_device(recorded):
    _, small, large, *_ = recorded
    # A stage of the product takes 32 KiB.
    assert (small[2]["options"]["num_stages"], large[2]["options"]["num_stages"]) == (3, 3)
    # One multiprocessor is kept busy by 16 heads; many get a program for each of three tiles of queries.
    assert (small[4]["grid"], large[4]["grid"]) == ([16, 1], [16, 3])


def test_every_kernel_is_compiled_at_the_shapes_of_models(recorded):
    *_, at_tiny_shapes, compiled, _ = recorded
    assert at_tiny_shapes == compiled
    assert len(compiled) == 25


def test_a_recording_leaves_nothing_behind(recorded):
    assert "only in Triton's interpreter" in recorded[-1]


def test_nothing_is_recorded_in_the_interpreter(monkeypatch):
    from crossmae_kernels.audit.recording import record
    from crossmae_kernels.runtime.device import INTERPRETER

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"^launches can't be recorded with TRITON_INTERPRET=1"), record(INTERPRETER):
        pass
