"""Every kernel compiled for GPUs that need not be there."""

import json
import os
import subprocess
import sys

import pytest


def audit(*arguments):
    """Records of the command, in a process of its own: this one may have Triton's interpreter in place."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "crossmae_kernels.audit", "--json", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


# float16 becomes bfloat16's code with other names of types: once is enough here, and the command compiles all.
@pytest.mark.parametrize(
    ("arch", "dtype"), [(90, "fp16"), *((arch, dtype) for arch in (80, 86, 90, 100) for dtype in ("bf16", "fp32"))]
)
def test_kernels_stay_in_registers_and_use_tensor_cores_and_wide_loads(arch, dtype):
    ops = ("cross_attention", "segmented_sum")
    code, records = audit("--ops", *ops, "--architectures", arch, "--dtypes", dtype, "--processes", 1)
    looped = {"looped_forward", "looped_backward_query", "looped_backward_key"}
    for head_width in (32, 64, 80, 128):
        kernels = {record["kernel"] for record in records if record["label"].startswith(f"width {head_width}, keys")}
        # 50 keys, the least that is compiled, of wide heads in float32 are more than fits on chip.
        short = set() if dtype == "fp32" and head_width > 64 else {"short_forward", "short_backward"}
        assert kernels == looped | short
    assert "segmented_sum_kernel" in {record["kernel"] for record in records}
    lacking = [record for record in records if record["shortcomings"]]
    assert not lacking
    assert code == 0


# Code that one setting of PyTorch asks for and another does not; the command compiles the rest of it.
def test_float32_goes_to_tensor_cores_as_tf32():
    code, records = audit("--ops", "cross_attention", "--architectures", 90, "--dtypes", "tf32", "--processes", 1)
    assert {record["kernel"] for record in records} >= {"short_backward", "looped_backward_key"}
    assert all(record["tensor_core"] for record in records)
    assert [record for record in records if record["shortcomings"]] == []
    assert code == 0


# float16 differs in the constants of a polynomial, and float32 is served by the vendor's products unless asked.
@pytest.mark.parametrize("arch", [80, 86, 90, 100])
def test_linear_layers_do_so_in_bfloat16(arch):
    ops = ("folding", "mlp", "projection")
    code, records = audit("--ops", *ops, "--architectures", arch, "--dtypes", "bf16", "--processes", 1)
    assert {record["kernel"] for record in records} == {
        "add_residual",
        "fold_backward",
        "fold_forward",
        "gelu_backward",
        "gemm",
        "hidden_backward",
        "normalize",
        "normalize_backward",
        "single_forward",
    }
    lacking = [record for record in records if record["shortcomings"]]
    assert not lacking
    assert code == 0


# float16 becomes bfloat16's code with other names of types.
@pytest.mark.parametrize(("arch", "dtype"), [(arch, dtype) for arch in (80, 86, 90, 100) for dtype in ("bf16", "fp32")])
def test_mixing_does_so_for_every_model(arch, dtype):
    code, records = audit("--ops", "feature_mixing", "--architectures", arch, "--dtypes", dtype, "--processes", 1)
    for model in ("ViT-S", "ViT-B", "ViT-L", "ViT-H"):
        kernels = {record["kernel"] for record in records if record["label"].startswith(model)}
        on_chip = dtype == "bf16" or model in ("ViT-S", "ViT-B")
        assert kernels == {"mixing_forward", "mixing_backward" if on_chip else "sums_backward"}
    lacking = [record for record in records if record["shortcomings"]]
    assert not lacking
    assert code == 0


# Nothing here is multiplied by tensor cores; each dtype where there are further forms, and once more.
@pytest.mark.parametrize(("arch", "dtype"), [(80, "bf16"), (86, "fp32"), (90, "bf16"), (100, "fp32")])
def test_patches_stay_in_registers_and_use_wide_loads(arch, dtype):
    code, records = audit("--ops", "patches", "--architectures", arch, "--dtypes", dtype, "--processes", 1)
    kernels = {record["kernel"] for record in records}
    assert kernels == {"gather_forward", "gather_backward", "loss_forward", "loss_backward"}
    lacking = [record for record in records if record["shortcomings"]]
    assert not lacking
    assert code == 0


def test_shortcomings_are_named():
    from crossmae_kernels.audit.case import shortcomings
    from crossmae_kernels.audit.cases.cross_attention import case
    from crossmae_kernels.audit.compilation import Assembly

    ampere = case("short_forward", 86, "bf16", 32, 50)
    assert shortcomings(ampere, Assembly(80, 0, 16384, ("HMMA",), 128, 128)) == []
    assert len(shortcomings(ampere, Assembly(255, 3, 100 * 1024, (), 64, 128))) == 4
    hopper = case("short_forward", 90, "bf16", 32, 50)
    assert shortcomings(hopper, Assembly(80, 0, 16384, ("HMMA",), 128, 128)) != []
