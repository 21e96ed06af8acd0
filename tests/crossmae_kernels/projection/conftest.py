"""Problems for the projections, and oracles that share nothing with the references."""

import pytest
import torch
from problems import Problem, Randoms, naive_gelu, naive_linear, naive_norm
from seeds import generator

import crossmae_kernels as ck

EPS = 1e-3


def norm_linear(rows, inner, outer, biases=True, norm=True, seed=0):
    random = Randoms(seed)
    arguments = {
        "x": random(*rows, inner) + 0.5,
        "weight": random(outer, inner, scale=inner**-0.5),
        "bias": random(outer) if biases else None,
        "norm_weight": random(inner) if norm else None,
        "norm_bias": random(inner) if norm else None,
    }
    return Problem(arguments, random(*rows, outer))


def linear_residual(rows, inner, outer, biases=True, table=0, seed=0):
    random = Randoms(seed)
    arguments = {
        "x": random(*rows, inner),
        "weight": random(outer, inner, scale=inner**-0.5),
        "bias": random(outer) if biases else None,
        "residual": random(table, outer) if table else random(*rows, outer),
    }
    return Problem(arguments, random(*rows, outer))


def picked(rows, table, dtype=torch.int64):
    """Ids that repeat."""
    return torch.randint(table, rows, generator=generator(1), dtype=dtype) if table else None


def naive_norm_linear(activation, x, weight, bias, norm_weight, norm_bias):
    out = naive_linear(naive_norm(x, norm_weight, norm_bias, EPS), weight, bias)
    return naive_gelu(out) if activation else out


def naive_linear_residual(ids, x, weight, bias, residual):
    if ids is not None:
        residual = torch.stack([torch.stack([residual[i] for i in image]) for image in ids.tolist()])
    return residual + naive_linear(x, weight, bias)


@pytest.fixture
def problems():
    return {"norm_linear": norm_linear, "linear_residual": linear_residual}


@pytest.fixture
def ids_of():
    return picked


@pytest.fixture
def by():
    """Who solves a problem: of ``norm_linear`` with an activation, of ``linear_residual`` with ids, or None."""

    def norm(impl):
        return lambda activation=None: (
            lambda **arguments: ck.norm_linear(**arguments, eps=EPS, activation=activation, impl=impl)
        )

    def residual(impl):
        return lambda ids=None: lambda **arguments: ck.linear_residual(**arguments, residual_ids=ids, impl=impl)

    return {
        "norm_linear": {
            "kernels": norm("triton"),
            "eager": norm("reference"),
            "oracle": lambda activation=None: lambda **arguments: naive_norm_linear(activation, **arguments),
        },
        "linear_residual": {
            "kernels": residual("triton"),
            "eager": residual("reference"),
            "oracle": lambda ids=None: lambda **arguments: naive_linear_residual(ids, **arguments),
        },
    }
