"""The cases that compute-sanitizer watches, as launches that are recorded."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from uninterpreted import run

from benchmarks import sanitizer
from benchmarks.sanitizer import IN_ORDER
from crossmae_kernels.testing import Draw

RECORDED = """
import json, torch
from benchmarks.sanitizer import cases
from crossmae_kernels.audit.calls import Call
from crossmae_kernels.audit.cases import kernel_names
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.recording import record
from crossmae_kernels.testing import Draw
found = {}
with record(DEVICES["NAME"].limits) as launches:
    for problem in cases(Draw(), DEVICES["NAME"].limits.multiplies_from_shared_memory):
        launches.clear()
        Call(problem).run(torch.bfloat16)
        found.setdefault(problem.op, []).extend(launch.name for launch in launches)
print(json.dumps([kernel_names(), found]))
"""


@pytest.mark.parametrize(("device", "absent"), [("h100", set()), ("rtx4090", {"persistent_gemm_kernel"})])
def test_every_kernel_is_launched(device, absent):
    names, found = json.loads(run("-c", RECORDED.replace("NAME", device)))
    assert {*itertools.chain(*found.values())} == {*names} - absent
    in_order = {name for op in IN_ORDER for name in found[op]}
    assert "mixing_forward_kernel" in in_order
    assert not in_order & {"gemm_kernel", "persistent_gemm_kernel", "short_forward_kernel"}


@pytest.mark.parametrize(
    ("words", "ops"), [((), {*IN_ORDER, "cross_attention", "mlp"}), (("--in-order",), {*IN_ORDER})]
)
def test_each_case_is_solved_in_bfloat16_and_waited_for(monkeypatch, capsys, words, ops):
    problems = sanitizer.cases(Draw(), persistent=False)
    solved = []
    monkeypatch.setattr(sanitizer, "Draw", lambda device: Draw())
    monkeypatch.setattr(sanitizer, "limits", lambda device: SimpleNamespace(multiplies_from_shared_memory=False))
    monkeypatch.setattr(sanitizer, "solve", lambda problem, call, dtype: solved.append((str(problem), dtype)))
    monkeypatch.setattr("torch.cuda.synchronize", lambda: solved.append("waited"))
    sanitizer.main(words)
    expected = [problem for problem in problems if not words or problem.op in IN_ORDER]
    assert {problem.op for problem in expected} >= ops
    assert solved == [each for problem in expected for each in ((str(problem), torch.bfloat16), "waited")]
    assert capsys.readouterr().out.splitlines() == [*map(str, expected)]
