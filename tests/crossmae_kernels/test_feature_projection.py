"""Keys and values of all decoder blocks: against the definition, with and without kernels."""

from functools import partial

import pytest
import torch
from problems import Problem, Randoms, naive_linear, naive_norm

import crossmae_kernels as ck

MAPS, BLOCKS, BATCH, TOKENS, WIDTH, OUT = 5, 3, 2, 4, 48, 24


def make_problem():
    random = Randoms()
    arguments = {f"map {index}": random(BATCH, TOKENS, WIDTH) for index in range(MAPS)}
    arguments |= {
        "mixing_weight": random(BLOCKS, MAPS, scale=0.5),
        "norm_weight": random(BLOCKS, WIDTH),
        "norm_bias": random(BLOCKS, WIDTH),
    }
    arguments |= {f"weight {index}": random(OUT, WIDTH, scale=WIDTH**-0.5) for index in range(BLOCKS)}
    arguments |= {f"bias {index}": random(OUT) for index in range(BLOCKS)}
    return Problem(arguments, random(BLOCKS, BATCH, TOKENS, OUT))


def several(by_name, prefix):
    return [tensor for name, tensor in by_name.items() if name.startswith(prefix)]


def project(impl, mixing_weight, norm_weight, norm_bias, **by_name):
    maps, weights, biases = (several(by_name, prefix) for prefix in ("map", "weight", "bias"))
    blocks = ck.project_feature_maps(maps, mixing_weight, norm_weight, norm_bias, weights, biases, impl=impl)
    return torch.stack(blocks)


def naive(mixing_weight, norm_weight, norm_bias, **by_name):
    maps, weights, biases = (several(by_name, prefix) for prefix in ("map", "weight", "bias"))
    blocks = []
    for block in range(BLOCKS):
        mix = sum(weight * feature_map for weight, feature_map in zip(mixing_weight[block], maps, strict=True))
        blocks.append(
            naive_linear(naive_norm(mix, norm_weight[block], norm_bias[block], 1e-6), weights[block], biases[block])
        )
    return torch.stack(blocks)


def test_reference_follows_the_definition():
    problem = make_problem()
    found = problem.solve(partial(project, "reference"), "cpu", torch.float64)
    exact = problem.exact(naive, torch.float64)
    assert found.keys() == exact.keys()
    for name, truth in exact.items():
        torch.testing.assert_close(found[name], truth, rtol=1e-12, atol=1e-12)


def test_kernels_keep_to_the_budget(place):
    make_problem().judge([partial(project, "triton")], partial(project, "reference"), naive, *place)


def test_kernels_keep_to_the_budget_under_autocast(device):
    # The maps stay in float32, as an encoder's residual stream has them.
    problem = make_problem()
    ours, theirs = partial(project, "triton"), partial(project, "reference")
    problem.judge([ours], theirs, naive, device, torch.float32, torch.float16)


def test_wrong_arguments_are_named():
    problem = make_problem().arguments
    norms = [problem["mixing_weight"], problem["norm_weight"], problem["norm_bias"]]
    maps, weights, biases = (several(problem, prefix) for prefix in ("map", "weight", "bias"))
    with pytest.raises(ValueError, match="weights must hold one tensor for each of 3 rows, got 2"):
        ck.project_feature_maps(maps, *norms, weights[:2], biases)
    with pytest.raises(ValueError, match=r"biases\[1\] must have shape \(O\) with O=24, got \(23,\)"):
        ck.project_feature_maps(maps, *norms, weights, [biases[0], biases[1][:-1], biases[2]])
    with pytest.raises(ValueError, match="at least one feature map"):
        ck.project_feature_maps([], norms[0][:, :0], *norms[1:], weights, biases)
