"""Every kernel compiled, as it is launched, for GPUs that need not be there."""

import json
from dataclasses import replace

import pytest
from uninterpreted import run

ARCHITECTURES = (80, 86, 89, 90, 100, 120)

# Compiles the first launch of each kernel.
FIRST_OF_EACH_KERNEL = """
import json, sys
from crossmae_kernels.audit.cases import cases
from crossmae_kernels.audit.devices import USUAL
from crossmae_kernels.audit.reports import judged
found = {}
for op, arch, dtype, kernels in json.loads(sys.argv[1]):
    for case in cases([op], [USUAL[arch]], [dtype]):
        if case.launch.name in (kernels or [case.launch.name]):
            found.setdefault((case.launch.name, dtype), case)
json.dump([judged(case)[0] for case in found.values()], sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_is_well_on_any_architecture(arch):
    records = json.loads(
        run("-m", "crossmae_kernels.audit", "--json", "--architectures", str(arch), "--processes", "1")
    )
    assert {record["arch"] for record in records} == {arch}
    assert {record["dtype"] for record in records} == {"bf16", "fp16", "fp32", "tf32"}


# float16 becomes bfloat16's code with other names of types. In float32 a thread holds most in backward passes.
def test_kernels_stay_in_registers_and_use_tensor_cores_and_wide_loads():
    chosen = [
        ("cross_attention", 90, "bf16", []), ("feature_mixing", 100, "bf16", []), ("mlp", 86, "bf16", []),
        ("projection", 80, "bf16", []), ("projection", 90, "bf16", ["persistent_gemm_kernel"]),
        ("cross_attention", 86, "fp32", ["short_backward_kernel"]),
        # 99 KiB of shared memory, where two kernels once spilled.
        ("cross_attention", 89, "fp16", ["short_backward_kernel"]), ("cross_attention", 120, "bf16", []),
    ]  # fmt: skip
    records = json.loads(run("-c", FIRST_OF_EACH_KERNEL, json.dumps(chosen)))
    assert not [record for record in records if record["shortcomings"]]
    multiplying = {
        "gemm_kernel",
        "hidden_backward_kernel",
        "looped_backward_key_kernel",
        "looped_backward_query_kernel",
        "looped_forward_kernel",
        "mixing_backward_kernel",
        "mixing_forward_kernel",
        "persistent_gemm_kernel",
        "short_backward_kernel",
        "short_forward_kernel",
        "single_forward_kernel",
    }
    others = {
        "add_residual_kernel",
        "column_sums_kernel",
        "fold_backward_kernel",
        "fold_forward_kernel",
        "gelu_backward_kernel",
        "normalize_backward_kernel",
        "normalize_kernel",
        "segmented_sum_kernel",
        "totals_kernel",
    }
    on_tensor_cores = {(record["kernel"], record["dtype"]): bool(record["tensor_core"]) for record in records}
    assert on_tensor_cores == {
        **{(kernel, "bf16"): kernel in multiplying for kernel in multiplying | others},
        ("short_backward_kernel", "fp32"): False,
        ("short_backward_kernel", "fp16"): True,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "arch", "dtype", "kernel"),
    [
        ("cross_attention", 86, "fp32", "looped_backward_key_kernel"),
        ("feature_mixing", 90, "fp32", "mixing_backward_kernel"),
        ("feature_mixing", 90, "fp32", "sums_backward_kernel"),
        ("cross_attention", 80, "tf32", "short_backward_kernel"),
        ("cross_attention", 80, "tf32", "looped_backward_key_kernel"),
    ],
)
def test_float32_stays_in_registers_and_tf32_uses_tensor_cores(op, arch, dtype, kernel):
    (record,) = json.loads(run("-c", FIRST_OF_EACH_KERNEL, json.dumps([(op, arch, dtype, [kernel])])))
    assert not record["shortcomings"]
    assert bool(record["tensor_core"]) == (dtype == "tf32")


ONE_KERNEL = """
import json, sys
from crossmae_kernels.audit.cases import cases
from crossmae_kernels.audit.devices import USUAL
from crossmae_kernels.audit.reports import judged
op, arch, dtype, kernel, name, value = json.loads(sys.argv[1])
found = [case for case in cases([op], [USUAL[arch]], [dtype]) if case.launch.name == kernel]
json.dump([judged(case)[0] for case in found if case.launch.named_constants.get(name) == value], sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "which",
    [
        ("projection", 100, "bf16", "gemm_kernel", "INNER", 200),
        ("mlp", 86, "fp32", "gemm_kernel", "INNER", 200),
        ("patches", 80, "fp32", "gather_backward_kernel", "PATCH_W", 64),
        ("feature_mixing", 100, "fp16", "mixing_backward_kernel", "MAPS", 33),
    ],
    ids=lambda which: f"{which[3]}-{which[1]}-{which[2]}",
)
def test_what_spilled_once_stays_in_registers(which):
    (record,) = json.loads(run("-c", ONE_KERNEL, json.dumps(which)))
    assert record["spilled"] == 0
    assert not record["shortcomings"]


def test_the_command_judges_predicts_and_remembers(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    chosen = ("gather_forward_kernel", "loss_backward_kernel")
    options = ("--ops", "patches", "--kernels", *chosen, "--architectures", "90", "--dtypes", "fp16", "fp32")
    records = json.loads(run("-m", "crossmae_kernels.audit", "--json", *options, "--processes", "1"))
    found = {(record["kernel"], record["arch"], record["dtype"]) for record in records}
    assert found == {(kernel, 90, "fp32") for kernel in chosen}
    for record in records:
        low, high = record["interval"]
        assert low < record["microseconds"] < high
        assert record["moved"] > 0
        assert record["limiter"] == "DRAM"
    remembered = [json.loads(file.read_text()) for file in (tmp_path / "audit").iterdir()]
    assert sorted(remembered, key=str) == sorted(records, key=str)


@pytest.mark.slow
def test_an_amd_gpu_is_compiled_for_and_not_predicted(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    kernels = ("gemm_kernel", "normalize_kernel")
    options = ("--kernels", *kernels, "--architectures", "gfx942", "--short", "--processes", "1")
    records = json.loads(run("-m", "crossmae_kernels.audit", "--json", "--ops", "projection", *options))
    assert {record["kernel"]: record["tensor_core"] for record in records} == {
        "gemm_kernel": ["MFMA"],
        "normalize_kernel": [],
    }
    for record in records:
        assert (record["device"], record["arch"]) == ("mi300x", "gfx942")
        assert record["shared"] <= 64 * 1024
        assert record["registers"] > 0
        assert (record["widest_load"], record["widest_store"]) == (128, 128)
        assert record["unpredicted"] == "nothing is predicted of AMD's machine code"
        assert "microseconds" not in record


def test_spills_to_scratch_and_a_missing_compiler_for_amd_are_reported(monkeypatch):
    from types import SimpleNamespace

    from crossmae_kernels.audit import amd, reports
    from crossmae_kernels.audit.cases import Case
    from crossmae_kernels.audit.compilation import CompilationError
    from crossmae_kernels.audit.devices import MI300X
    from crossmae_kernels.audit.recording import Launch

    case = Case("", MI300X, "bf16", Launch("module:gemm_kernel", {}, {}, {}, {}, (1,), {}, {}))
    text = "\tscratch_store_dwordx2 off, v[0:1], s32\n\tglobal_load_ushort v1, v[2:3], off\n    .vgpr_count:     256\n"
    text += "    .private_segment_fixed_size: 8\n"
    compiled = SimpleNamespace(asm={"amdgcn": text, "ttir": ""}, metadata=SimpleNamespace(shared=70_000))
    monkeypatch.setattr(amd, "compile_for", lambda *arguments: compiled)
    record = reports._report(case)
    assert (record["registers"], record["stack"], record["widest_load"]) == (256, 8, 16)
    assert record["shortcomings"] == [
        "1 instructions spill registers",
        "70000 bytes of shared memory, 65536 are there",
    ]

    def refuse(*arguments):
        raise CompilationError("gemm_kernel for gfx942: no backend")

    monkeypatch.setattr(amd, "compile_for", refuse)
    assert reports._report(case)["shortcomings"] == ["gemm_kernel for gfx942: no backend"]


def test_what_is_unknown_is_a_line_and_the_rest_is_reported(capsys):
    from crossmae_kernels.audit import command

    assert command.main(["--devices", "h10"], "audit") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("audit: no device h10 is known, of a100, ")
    devices, lines = command._devices(None, ["sm_90", "70"])
    assert [device.name for device in devices] == ["h100"]
    assert lines == ["no architecture 70 is known, of 80, 86, 89, 90, 100, 120, gfx942"]


@pytest.mark.parametrize(("words", "dtypes"), [([], ["bf16"]), (["--dtypes", "fp32", "fp16"], ["fp32", "fp16"])])
def test_short_is_in_the_dtypes_that_are_asked_for(words, dtypes, monkeypatch):
    from crossmae_kernels.audit import command

    asked = []
    monkeypatch.setattr(command, "cases", lambda ops, devices, dtypes, images: asked.append(dtypes) or [])
    command.main(["--short", "--ops", "patches", "--devices", "h100", *words], "audit")
    assert asked == [dtypes]


@pytest.mark.parametrize("option", ["batch", "processes"])
def test_counts_are_positive(option):
    from crossmae_kernels.audit import command

    with pytest.raises(ValueError, match=f"^--{option} must be positive, got 0$"):
        command.main([f"--{option}", "0"], "audit")


def test_shortcomings_are_named():
    from crossmae_kernels.audit.cases import Case, shortcomings
    from crossmae_kernels.audit.compilation import Assembly
    from crossmae_kernels.audit.devices import USUAL
    from crossmae_kernels.audit.recording import Launch

    good = Assembly(80, 0, 0, 16384, ("2D bf16",), ("HMMA",), 128, 128)

    def lacking(arch, kernel="short_forward_kernel", constants=None, numbers=None, **outcome):
        named = constants or {}
        places = {(place,): value for place, value in enumerate(named.values())}
        launch = Launch(f"module:{kernel}", dict.fromkeys(named), places, {}, {}, (1,), numbers or {}, {})
        return shortcomings(Case("", USUAL[arch], "", launch), replace(good, **outcome))

    assert lacking(86) == []
    assert lacking(86, spilled=3, shared=100 * 1024, tensor_core=(), widest_load=64) == [
        "3 instructions spill registers",
        "102400 bytes of shared memory, 101376 are there",
        "tensor-core instructions are none",
        "loads of 64 bits at most",
    ]
    assert lacking(86, spilled=None, tensor_core=None, widest_load=None, widest_store=None, stack=8) == [
        "8 bytes of each thread's registers are spilled"
    ]
    # Hopper has instructions of its own but for products that each warp has of its own, and small ones in TF32.
    assert lacking(90) == ["tensor-core instructions are ('HMMA',)"]
    assert lacking(90, products=("3D bf16",)) == []
    assert lacking(90, products=("2D tf32",)) == []
    assert lacking(86, products=("2D ieee",), tensor_core=()) == []
    assert lacking(86, "fold_backward_kernel", widest_store=64) == ["stores of 64 bits at most"]
    # Rows that begin anywhere cannot be loaded wide, whatever says how long they are.
    assert lacking(86, "column_sums_kernel", constants={"WIDTH": 208}, widest_load=32) == ["loads of 32 bits at most"]
    assert lacking(86, "column_sums_kernel", constants={"WIDTH": 200}, widest_load=32) == []
    assert lacking(86, "totals_kernel", numbers={"width": 200}, widest_load=32) == []


# A product with spilled registers, and what the audit says of it where Triton finds no disassembler.
WITHOUT_DISASSEMBLER = """
import contextlib, io, json, subprocess, sys
from dataclasses import replace
from pathlib import Path
import triton
from crossmae_kernels.audit import command, compilation, reports
from crossmae_kernels.audit.cases import cases
from crossmae_kernels.audit.devices import USUAL

first = next(case for case in cases(["mlp"], [USUAL[86]], ["bf16"]) if case.launch.name == "gemm_kernel")
spilling = replace(first, launch=replace(first.launch, options={**first.launch.options, "maxnreg": 32}))
with_tool = compilation.compile_launch(spilling.launch, 86)
cubins = []
inner, compilation._disassembled = compilation._disassembled, lambda cubin, *rest: cubins.append(cubin)
compilation.compile_launch(spilling.launch, 86)
compilation._disassembled = inner
Path(sys.argv[1]).write_bytes(cubins[0])
dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
usage = subprocess.run([dump, "--dump-resource-usage", sys.argv[1]], capture_output=True, text=True, check=True).stdout

find = triton.knobs.NvidiaTool.from_path
triton.knobs.NvidiaTool.from_path = staticmethod(lambda path: None if "nvdisasm" in path else find(path))
record = reports.report(spilling)
line = command.line_of(record)
command.reports = lambda cases, processes: map(reports.report, cases)
errors, table = io.StringIO(), io.StringIO()
with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(table):
    words = ["--ops", "norm_folding", "--architectures", "86", "75", "--short", "--kernels", "fold_forward_kernel"]
    code = command.main(words, "audit")
json.dump({
    "usage": usage, "registers": with_tool.file.registers, "stack": with_tool.file.stack, "record": record,
    "line": line, "code": code, "errors": errors.getvalue(), "table": table.getvalue(),
}, sys.stdout)
"""


@pytest.mark.slow
def test_without_a_disassembler_the_rest_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    found = json.loads(run("-c", WITHOUT_DISASSEMBLER, str(tmp_path / "kernel.cubin")))
    # What cuobjdump reads in the file.
    assert f"REG:{found['registers']} STACK:{found['stack']} " in found["usage"]
    record = found["record"]
    assert (record["registers"], record["stack"]) == (found["registers"], found["stack"]) == (32, found["stack"])
    assert record["stack"] > 0
    assert record["shared"] > 0
    assert record["products"] == ["2D bf16"]
    assert record["shortcomings"] == [f"{record['stack']} bytes of each thread's registers are spilled"]
    assert "registers 32  spilled ?  shared" in found["line"]
    assert "no time: there is no nvdisasm" in found["line"]
    unknown, missing = found["errors"].splitlines()
    assert unknown.startswith("audit: no architecture 75 is known, of 80, 86, ")
    assert missing.startswith("audit: there is no nvdisasm, ")
    assert missing.endswith(": instructions and times are left out")
    assert found["code"] == 1
    assert len(found["table"].splitlines()) == 1


NAMES = """
import json, sys
from crossmae_kernels.audit import command
from crossmae_kernels.audit.cases import cases, kernel_names
from crossmae_kernels.audit.devices import USUAL
launched = {case.launch.name for arch in (90, 100) for case in cases(devices=[USUAL[arch]], dtypes=["bf16"])}
command.cases = None  # nothing is recorded
try:
    command.main(["--kernels", "gemm_kernel", "nope"], "audit")
except ValueError as error:
    json.dump([kernel_names(), sorted(launched), str(error)], sys.stdout)
"""


@pytest.mark.slow
def test_unknown_kernels_are_refused_before_anything_is_recorded():
    names, launched, line = json.loads(run("-c", NAMES))
    assert names == launched
    assert line == f"--kernels: there is no nope; there are {', '.join(launched)}"


SPECIALIZED = """
import json, sys
from crossmae_kernels.audit.cases import cases
from crossmae_kernels.audit.devices import USUAL
from crossmae_kernels.audit.reports import report
chosen = cases(["projection"], [USUAL[100]], ["bf16"])
case = next(case for case in chosen if case.launch.named_constants.get("SPECIALIZED"))
json.dump(report(case), sys.stdout)
"""


@pytest.mark.slow
def test_specialised_warps_are_not_followed_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSMAE_KERNELS_CACHE", str(tmp_path))
    record = json.loads(run("-c", SPECIALIZED))
    assert record["registers"] > 0
    assert record["unpredicted"].endswith("threads are added for specialised warps, which are not followed")
