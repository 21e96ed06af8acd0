"""What a recording of operators holds, and what ceilings make of it."""

import json
from math import isclose

import pytest
from uninterpreted import run

from crossmae_kernels.audit.devices import DEVICES

PROGRAM = """
import json
from dataclasses import asdict

import torch
import torch.nn.functional as F

import crossmae_kernels as ck
from crossmae_kernels.audit.ceilings import estimate
from crossmae_kernels.audit.devices import DEVICES
from crossmae_kernels.audit.operations import record_operations
from crossmae_kernels.runtime.dispatch import form_of


def recorded(function, *shapes, dtype=torch.bfloat16):
    with record_operations(DEVICES["h100"].limits) as operations:
        tensors = [torch.empty(shape, dtype=dtype) for shape in shapes]
        assert operations == []  # to allocate is no work
        function(*tensors)
    return [shown(operation) for operation in operations]


def shown(operation):
    return {
        "name": operation.name, "ours": operation.ours, "flops": operation.flops, "bytes": operation.bytes,
        "inner": [shown(each) for each in operation.operations],
        "kernels": [launch.name for launch in operation.launches],
        "estimate": estimate(operation, DEVICES["h100"]),
    }


def linear(x, weight, residual):
    with form_of("linear_residual", "library"):
        ck.linear_residual(x, weight, None, residual, impl="triton")


print(json.dumps({
    "views": recorded(lambda x: x.transpose(0, 1)[1:].expand(3, 7, 8)[None], (8, 8)),
    "copy": recorded(lambda x: x.clone(), (2**20, 512)),
    "expanded": recorded(lambda x: x.expand(4, 8) + 1, (1, 8)),
    "gather": recorded(lambda x: x[torch.empty(4, dtype=torch.long)], (100, 8)),
    "matmul": recorded(lambda x, w: x @ w, (2, 3, 64), (64, 32)),
    "product": recorded(lambda x, w: x @ w, (8192, 8192), (8192, 8192)),
    "in float32": recorded(lambda x, w: x @ w, (8192, 8192), (8192, 8192), dtype=torch.float32),
    "attention": recorded(F.scaled_dot_product_attention, *[(2, 4, 16, 8)] * 3),
    "ours": recorded(linear, (64, 32), (48, 32), (64, 48)),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("operations") / "program.py"
    file.write_text(PROGRAM)
    return json.loads(run(file))


def figures(operation):
    return operation["name"], operation["flops"], operation["bytes"]


def test_views_cost_nothing(found):
    assert found["views"] == []


def test_bytes_are_those_of_the_tensors_that_are_there(found):
    assert figures(found["copy"][0]) == ("clone", 0, 2 * 2**20 * 512 * 2)
    assert figures(found["expanded"][0]) == ("add", 0, (8 + 4 * 8) * 2)
    # Of 100 rows 4 are read; ids have 8 bytes.
    assert figures(found["gather"][0]) == ("index", 0, 2 * 4 * 8 * 2 + 4 * 8)


def test_products_are_counted_whoever_makes_them(found):
    (product,) = found["matmul"]
    assert figures(product) == ("mm", 2 * 6 * 64 * 32, (6 * 64 + 64 * 32 + 6 * 32) * 2)
    (attention,) = found["attention"]
    assert figures(attention)[:2] == ("scaled_dot_product_attention", 2 * 2 * (2 * 4 * 16 * 16 * 8))


def test_an_operator_of_ours_has_what_it_launches(found):
    (operation,) = found["ours"]
    assert operation["ours"]
    assert operation["flops"] == 2 * 64 * 32 * 48
    assert operation["bytes"] == (64 * 32 + 48 * 32 + 2 * 64 * 48) * 2
    (product,) = (inner for inner in operation["inner"] if inner["flops"])
    assert product["flops"] == operation["flops"]


def test_ceilings_are_those_of_the_device(found):
    """H100: 3.35 TB/s of which 90 % last; 989 TFLOPS in 16 bits, 67 in float32, of which 97 % and four fifths."""
    assert (DEVICES["h100"].bandwidth, DEVICES["h100"].launch) == (3350, 3.0)
    time, limiter = found["copy"][0]["estimate"]
    assert isclose(time, 3 + 2 * 2**30 / (0.9 * 3.35e6), rel_tol=1e-6)
    assert limiter == "DRAM"
    for name, peak, pipe in (("product", 989e6, "tensor cores"), ("in float32", 67e6, "fma")):
        time, limiter = found[name][0]["estimate"]
        # NVIDIA gives float32's peak at a clock of 1.98 GHz, tensor cores' at 1.83.
        assert isclose(time, 3 + 2 * 8192**3 / (0.8 * 0.97 * peak), rel_tol=0.09)
        assert limiter == pipe
