"""Problems for the MLP, and an oracle that shares nothing with the reference."""

from contextlib import ExitStack, contextmanager

import pytest
from problems import Problem, Randoms, naive_gelu, naive_linear, naive_norm

import crossmae_kernels as ck
from crossmae_kernels.runtime.dispatch import form_of

EPS = 1e-3


def naive_mlp(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    """The definition."""
    hidden = naive_gelu(naive_linear(naive_norm(x, norm_weight, norm_bias, EPS), fc1_weight, fc1_bias))
    return x + naive_linear(hidden, fc2_weight, fc2_bias)


def make(rows, width, hidden, biases=True, norm=True, seed=0):
    """Rows as leading dimensions."""
    random = Randoms(seed)
    arguments = {
        "x": random(*rows, width) + 0.5,
        "norm_weight": random(width) if norm else None,
        "norm_bias": random(width) if norm else None,
        "fc1_weight": random(hidden, width, scale=width**-0.5),
        "fc1_bias": random(hidden) if biases else None,
        "fc2_weight": random(width, hidden, scale=hidden**-0.5),
        "fc2_bias": random(width) if biases else None,
    }
    return Problem(arguments, random(*rows, width))


def fused(policy="recompute"):
    """The kernels."""
    return lambda **arguments: ck.mlp(**arguments, eps=EPS, hidden=policy, impl="triton")


def eager(**arguments):
    """PyTorch's operators."""
    return ck.mlp(**arguments, eps=EPS, impl="reference")


@contextmanager
def in_form(name):
    """Forward and backward pass in a form; the one with a single kernel has no backward pass of its own."""
    with ExitStack() as stack:
        stack.enter_context(form_of("mlp", name))
        stack.enter_context(form_of("mlp_backward", "tiled" if name == "single" else name))
        yield


@pytest.fixture
def problem():
    return make


@pytest.fixture
def form():
    return in_form


@pytest.fixture
def by():
    """Who solves a problem."""
    return {"kernels": fused, "eager": eager, "oracle": naive_mlp}
