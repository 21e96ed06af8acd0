"""Problems for the mixing of feature maps, and an oracle that shares nothing with the reference."""

import pytest
import torch
from problems import Problem, Randoms, naive_norm

import crossmae_kernels as ck

EPS = 1e-3


def mixing(rows, maps, mixes, width, affine=False, seed=0):
    """Maps by name, ``map 0`` and so on; ``rows`` are images and tokens of each."""
    random = Randoms(seed)
    arguments = {f"map {index}": random(*rows, width) + 0.5 for index in range(maps)}
    arguments |= {"weight": random(mixes, maps, scale=maps**-0.5)}
    arguments |= {name: random(mixes, width) if affine else None for name in ("norm_weight", "norm_bias")}
    return Problem(arguments, random(mixes, *rows, width))


def naive_mixing(normalize, weight, norm_weight, norm_bias, **maps):
    """The definition, one decoder block and one map at a time."""
    mixes = []
    for block in range(weight.shape[0]):
        mix = torch.zeros_like(maps["map 0"])
        for index in range(weight.shape[1]):
            mix = mix + weight[block, index] * maps[f"map {index}"]
        affine = [None if t is None else t[block] for t in (norm_weight, norm_bias)]
        mixes.append(naive_norm(mix, *affine, EPS) if normalize else mix)
    return torch.stack(mixes)


def mix(impl, normalize, weight, norm_weight=None, norm_bias=None, **maps):
    return ck.mix_feature_maps(list(maps.values()), weight, norm_weight, norm_bias, EPS, normalize, impl)


@pytest.fixture
def problem():
    return mixing


@pytest.fixture
def by():
    """Who solves a problem, with or without normalisation."""
    return {
        "kernels": lambda normalize=True: lambda **arguments: mix("triton", normalize, **arguments),
        "eager": lambda normalize=True: lambda **arguments: mix("reference", normalize, **arguments),
        "oracle": lambda normalize=True: lambda **arguments: naive_mixing(normalize, **arguments),
    }
