"""The cases that compute-sanitizer watches, as launches that are recorded."""

import itertools
import json

import pytest
from uninterpreted import run

from benchmarks.sanitizer import IN_ORDER

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
