"""Calls and comparisons of models under the releases' names."""

import torch
from releases import CrossMAE, randomized


def images(batch=3, **kwargs):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(5), **kwargs)


def crossmae_model(**arguments):
    return randomized(CrossMAE(**{"use_input": True, "norm_pix_loss": True, **arguments}))


def call(model, *args, seed=3, **kwargs):
    """A call's outputs as a tuple, on random numbers of their own."""
    torch.manual_seed(seed)
    out = model(*args, **kwargs)
    return out if isinstance(out, tuple) else (out,)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(ours, theirs, rtol=1e-4, atol=1e-5):
    assert len(ours) == len(theirs)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
