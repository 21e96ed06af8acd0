"""Build a model from a configuration and the tensors of a file."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from crossmae.checkpoint.messages import first_few
from crossmae.model import MaskedAutoencoder
from crossmae.model.config import Config
from crossmae.model.positions import interpolate_positions

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def filled(
    config: Config, state_dict: Mapping[str, Tensor], source: str, rename: Callable[[str], str] = str
) -> MaskedAutoencoder:
    """A model of the given configuration with exactly the given tensors, copied, in one dtype.

    The dtype is the widest of the weights', at least float32. Positions, which NumPy computes in float64, follow it.

    Args:
        config: of the model.
        state_dict: tensors by name.
        source: of the tensors, named in messages.
        rename: maps a name of ours to the name in the state dict.

    Raises:
        ValueError: naming the first tensors that are missing, unexpected, or not of the model's shape.
    """
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    ours = {rename(name): name for name in model.state_dict()}
    wrong = misfits({rename(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}, state_dict)
    if wrong:
        raise ValueError(f"{source} does not fit the model: {first_few(wrong, separator='; ')}")
    weights = (tensor.dtype for name, tensor in state_dict.items() if not ours[name].endswith(".positions"))
    widest = reduce(torch.promote_types, weights, torch.float32)
    copies = {ours[name]: tensor.detach().to(widest, copy=True).contiguous() for name, tensor in state_dict.items()}
    model.load_state_dict(copies, assign=True)
    model.register_pixel_statistics()
    return model


def misfits(expected: Mapping[str, tuple[int, ...]], state_dict: Mapping[str, Tensor]) -> list[str]:
    """Problems with tensors that must have the expected names and shapes and a floating-point dtype."""
    wrong = [f"missing {name} {shape}" for name, shape in expected.items() if name not in state_dict]
    wrong += [f"unexpected {name} {tuple(t.shape)}" for name, t in state_dict.items() if name not in expected]
    for name, tensor in state_dict.items():
        shape = tuple(tensor.shape)
        if shape != expected.get(name, shape):
            wrong.append(f"{name} must have shape {expected[name]}, got {shape}")
        elif tensor.is_meta or tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
            layout = "" if tensor.layout == torch.strided else f", {tensor.layout},"
            got = f"{tensor.dtype}{layout} on {tensor.device}"
            wrong.append(f"{name} must be dense 16, 32 or 64-bit floats with data, got {got}")
    return wrong


def resized(model: MaskedAutoencoder, image_size: tuple[int, int]) -> MaskedAutoencoder:
    """The same weights for another image size, with position embeddings interpolated in 2-D."""
    config = replace(model.config, image_size=image_size)
    state = model.state_dict()
    for name in ("encoder.positions", "decoder.positions"):
        if name in state:
            class_tokens = state[name].shape[1] - model.config.patches
            state[name] = interpolate_positions(state[name], model.config.grid, config.grid, class_tokens)
    return filled(config, state, "the resized model")
