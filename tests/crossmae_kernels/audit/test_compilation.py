"""Every kernel compiled, as it is launched, for GPUs that need not be there."""

import json

import pytest
from uninterpreted import run

ARCHITECTURES = (80, 86, 90, 100)

# Compiles the first launch of each kernel.
FIRST_OF_EACH_KERNEL = """
import json, sys
from crossmae_kernels.audit.cases import cases, report
found = {}
for op, arch, dtype in json.loads(sys.argv[1]):
    for case in cases([op], [arch], [dtype]):
        found.setdefault((case.launch.name, dtype), case)
json.dump([report(case) for case in found.values()], sys.stdout)
"""


def first_of_each_kernel(*chosen):
    """Names of the kernels; none of those compiled lacks anything."""
    records = json.loads(run("-c", FIRST_OF_EACH_KERNEL, json.dumps(chosen)))
    assert not [record for record in records if record["shortcomings"]]
    return {record["kernel"]: record for record in records}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_is_well_on_any_architecture(arch):
    records = json.loads(
        run("-m", "crossmae_kernels.audit", "--json", "--architectures", str(arch), "--processes", "1")
    )
    assert {record["arch"] for record in records} == {arch}
    assert {record["dtype"] for record in records} == {"bf16", "fp16", "fp32", "tf32"}


# float16 becomes bfloat16's code with other names of types.
def test_kernels_stay_in_registers_and_use_tensor_cores_and_wide_loads():
    kernels = first_of_each_kernel(
        ("cross_attention", 90, "bf16"), ("feature_mixing", 100, "bf16"), ("mlp", 86, "bf16"),
        ("norm_folding", 86, "bf16"), ("patches", 80, "bf16"), ("projection", 80, "bf16"),
    )  # fmt: skip
    assert kernels.keys() == {
        "add_residual", "fold_backward", "fold_forward", "gather_backward", "gather_forward", "gelu_backward_kernel",
        "gemm_kernel", "hidden_backward", "looped_backward_key", "looped_backward_query", "looped_forward",
        "loss_backward", "loss_forward", "mixing_backward", "mixing_forward", "normalize_backward_kernel",
        "normalize_kernel", "segmented_sum_kernel", "short_backward", "short_forward", "single_forward",
    }  # fmt: skip
    multiplying = {name for name, record in kernels.items() if record["tensor_core"]}
    assert multiplying == {
        "gemm_kernel", "hidden_backward", "looped_backward_key", "looped_backward_query", "looped_forward",
        "mixing_backward", "mixing_forward", "short_backward", "short_forward", "single_forward",
    }  # fmt: skip


def test_float32_stays_in_registers_too_and_as_tf32_goes_to_tensor_cores():
    exact = first_of_each_kernel(("cross_attention", 86, "fp32"), ("feature_mixing", 90, "fp32"))
    assert exact.keys() >= {"short_backward", "looped_backward_key", "mixing_backward", "sums_backward"}
    assert not any(record["tensor_core"] for record in exact.values())
    rounded = first_of_each_kernel(("cross_attention", 80, "tf32"))
    assert rounded.keys() >= {"short_backward", "looped_backward_key"}
    assert all(record["tensor_core"] for record in rounded.values())


def test_the_command_judges():
    options = ("--ops", "norm_folding", "--architectures", "90", "--dtypes", "bf16", "fp16", "--processes", "1")
    records = json.loads(run("-m", "crossmae_kernels.audit", "--json", *options))
    kernels = {(record["kernel"], record["arch"], record["dtype"]) for record in records}
    assert kernels == {(f"fold_{way}", 90, dtype) for way in ("forward", "backward") for dtype in ("bf16", "fp16")}


SHORTCOMINGS = """
import json
from crossmae_kernels.audit.cases import Case, shortcomings
from crossmae_kernels.audit.compilation import Assembly
from crossmae_kernels.audit.recording import Launch

def lacking(arch, kernel="short_forward", **outcome):
    launch = Launch(f"module:{kernel}", {}, {}, {}, {}, (1,), {})
    good = dict(
        registers=80, spilled=0, shared=16384, products=("2D bf16",), tensor_core=("HMMA",), widest_load=128,
        widest_store=128,
    )
    return shortcomings(Case("", arch, "", launch), Assembly(**good | outcome))

print(json.dumps([
    lacking(86),
    lacking(86, spilled=3, shared=100 * 1024, tensor_core=(), widest_load=64),
    lacking(90),
    lacking(90, products=("3D bf16",)),
    lacking(90, products=("2D tf32",)),
    lacking(90, products=("2D ieee",), tensor_core=()),
    lacking(86, "fold_backward", widest_store=64),
]))
"""


def test_shortcomings_are_named():
    fine, much, no_wgmma, by_warp, in_tf32, exact, narrow = json.loads(run("-c", SHORTCOMINGS))
    assert fine == by_warp == in_tf32 == exact == []
    assert much == [
        "3 instructions spill registers",
        "102400 bytes of shared memory, 101376 are there",
        "tensor-core instructions are none",
        "loads of 64 bits at most",
    ]
    assert no_wgmma == ["tensor-core instructions are ('HMMA',)"]
    assert narrow == ["stores of 64 bits at most"]
