"""Every kernel compiled for GPUs that need not be there."""

import json
import os
import subprocess
import sys

import pytest

ARCHITECTURES = (80, 86, 90, 100)

# Compiles each case for one architecture, taking turns, for which it exists: kernel by kernel, so that each kernel is
# compiled for as many architectures as it has cases. Half a minute of work in place of two minutes an operation.
TAKING_TURNS = """
import itertools, json, sys
from crossmae_kernels.audit.case import report
from crossmae_kernels.audit.cases import cases
ops, dtypes, labels, architectures = json.loads(sys.argv[1])
same = {}
for case in cases(ops, architectures, dtypes):
    if not case.label.startswith(tuple(labels)):
        continue
    same.setdefault((case.name, case.dtype, case.label), []).append(case)
turns = {name: itertools.count() for name, _, _ in same}
json.dump([report(found[next(turns[name]) % len(found)]) for (name, _, _), found in same.items()], sys.stdout)
"""


def run(*command):
    """In a process of its own: this one may have Triton's interpreter in place."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def taking_turns(ops, *dtypes, labels=("",)):
    """Records of one compilation of each case whose label begins so; none of them lacks anything."""
    done = run("-c", TAKING_TURNS, json.dumps([ops, dtypes, labels, ARCHITECTURES]))
    assert done.returncode == 0, done.stderr[-2000:]
    records = json.loads(done.stdout)
    assert not [record for record in records if record["shortcomings"]]
    return records


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_command_finds_nothing_lacking_in_any_dtype_on_any_architecture(arch):
    done = run("-m", "crossmae_kernels.audit", "--json", "--architectures", str(arch), "--processes", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {record["arch"] for record in json.loads(done.stdout)} == {arch}


def test_the_command_judges():
    options = ("--ops", "segmented_sum", "--architectures", "90", "--dtypes", "bf16", "fp16", "--processes", "1")
    done = run("-m", "crossmae_kernels.audit", "--json", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [(record["kernel"], record["arch"], record["dtype"]) for record in json.loads(done.stdout)]
    assert kernels == [("segmented_sum_kernel", 90, "bf16"), ("segmented_sum_kernel", 90, "fp16")]


# float16 becomes bfloat16's code with other names of types. float32, the slower way to compute, takes the widths of the
# models' decoders and of most of their encoders.
@pytest.mark.parametrize(("dtype", "head_widths"), [("bf16", (32, 64, 80, 128)), ("fp32", (32, 64))])
def test_attention_stays_in_registers_and_uses_tensor_cores_and_wide_loads(dtype, head_widths):
    labels = [f"width {head_width}, keys" for head_width in head_widths]
    attention = taking_turns(["cross_attention"], dtype, labels=labels)
    records = attention + taking_turns(["segmented_sum"], dtype)
    looped = {"looped_forward", "looped_backward_query", "looped_backward_key"}
    for head_width in head_widths:
        kernels = {record["kernel"] for record in records if record["label"].startswith(f"width {head_width}, keys")}
        # 50 keys, the least that is compiled, of wide heads in float32 are more than fits on chip.
        short = set() if dtype == "fp32" and head_width > 64 else {"short_forward", "short_backward"}
        assert kernels == looped | short
    if dtype == "bf16":
        for kernel in looped:
            assert {record["arch"] for record in records if record["kernel"] == kernel} == set(ARCHITECTURES)
    assert "segmented_sum_kernel" in {record["kernel"] for record in records}


# Code that one setting of PyTorch asks for and another does not. The command compiles the other ops too.
def test_float32_goes_to_tensor_cores_as_tf32():
    records = taking_turns(["cross_attention"], "tf32", labels=["width 64, keys"])
    assert {record["kernel"] for record in records} >= {"short_backward", "looped_backward_key"}
    assert all(record["tensor_core"] for record in records)


# float16 differs in the constants of a polynomial, and float32 is served by the library's products unless asked.
def test_linear_layers_do_so_in_bfloat16():
    records = taking_turns(["folding", "mlp", "projection"], "bf16")
    assert {record["kernel"] for record in records} == {
        "add_residual",
        "fold_backward",
        "fold_forward",
        "gelu_backward_kernel",
        "gemm_kernel",
        "hidden_backward",
        "normalize_kernel",
        "normalize_backward_kernel",
        "single_forward",
    }
    assert {record["arch"] for record in records if record["kernel"] == "gemm_kernel"} == set(ARCHITECTURES)


# float16 becomes bfloat16's code with other names of types. In float32 models are of two kinds.
@pytest.mark.parametrize(
    ("dtype", "models"), [("bf16", ("ViT-S", "ViT-B", "ViT-L", "ViT-H")), ("fp32", ("ViT-B", "ViT-L"))]
)
def test_mixing_does_so_for_every_model(dtype, models):
    records = taking_turns(["feature_mixing"], dtype, labels=models)
    for model in models:
        kernels = {record["kernel"] for record in records if record["label"].startswith(model)}
        on_chip = dtype == "bf16" or model in ("ViT-S", "ViT-B")
        assert kernels == {"mixing_forward", "mixing_backward" if on_chip else "sums_backward"}


# Nothing here is multiplied by tensor cores.
def test_patches_stay_in_registers_and_use_wide_loads():
    records = taking_turns(["patches"], "bf16", "fp32")
    kernels = {record["kernel"] for record in records}
    assert kernels == {"gather_forward", "gather_backward", "loss_forward", "loss_backward"}


def test_shortcomings_are_named():
    from crossmae_kernels.audit.case import shortcomings
    from crossmae_kernels.audit.cases.cross_attention import case
    from crossmae_kernels.audit.compilation import Assembly

    ampere = case("short_forward", 86, "bf16", 32, 50)
    assert shortcomings(ampere, Assembly(80, 0, 16384, ("HMMA",), 128, 128)) == []
    assert len(shortcomings(ampere, Assembly(255, 3, 100 * 1024, (), 64, 128))) == 4
    hopper = case("short_forward", 90, "bf16", 32, 50)
    assert shortcomings(hopper, Assembly(80, 0, 16384, ("HMMA",), 128, 128)) != []
