"""Find a model's tensors in a file, under any key and in any number of wrappers."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from crossmae.checkpoint.messages import first_few

Layout = Literal["ours", "release", "huggingface", "torchvision"]

# Name parts that DDP and EMA, torch.compile, FSDP, activation checkpointing and Fabric insert, at any depth.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
# The name of the patch embedding identifies the layout; what precedes it is a prefix to remove.
_PATCHES: dict[Layout, str] = {
    "huggingface": r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.weight",
    "torchvision": r"conv_proj\.weight",
    "release": r"patch_embed\.proj\.weight",
    "ours": r"(?:encoder\.)?patch_embed\.weight",
}
_CLASS_TOKENS = ("cls_token", "class_token")
_AVERAGED = {"ema", "swa", "averaged", "average"}
# An optimizer's moments and gradients may be named like their parameters.
_OPTIMIZER = re.compile(r"(^|_)(opt(im(izers?)?)?|exp_avg|momentum_buffer|moments?|grad(ient)?s?)(_|$)|^momentum$")
_DEPTH = 4  # of nested dictionaries


@dataclass(frozen=True)
class StateDict:
    """The tensors of one model, under the names of their layout."""

    tensors: dict[str, Tensor]
    layout: Layout | None
    place: str
    averaged: bool
    left_out: list[str]


def find_state_dict(content: Any, path: Path, key: str | None) -> tuple[StateDict, list[str]]:
    """Find the model in a file's content; returns it and notes on the choice.

    Args:
        content: tensors by name, or dictionaries of them and of anything else.
        path: of the file, named in messages.
        key: chooses among several models; by default, one raw model is preferred to any number of averaged ones.
    """
    there = [model for keys, tensors in _dictionaries(content, ()) for model in _models(tensors, keys, path)]
    found = [model for model in there if key is None or f".{key}." in f".{model.place}."]
    whole = [model for model in found if any(name.endswith(_CLASS_TOKENS) for name in model.tensors)]
    found = whole or found
    if not found:
        if there:
            raise ValueError(f"{path} holds no model under {key!r}; its models are {_places(there)}")
        return _unknown(content, path), []
    raw = [model for model in found if not model.averaged] or found
    if len(raw) > 1:
        raise ValueError(f"{path} holds several models, {_places(raw)}; choose one by key=")
    (chosen,) = raw
    empty = [f"{name} on {t.device}, {t.layout}" for name, t in chosen.tensors.items() if not _has_values(t)]
    if empty:
        raise ValueError(f"{path}: tensors must be dense and with data, got {first_few(empty)}")
    said = []
    others = [model for model in found if model is not chosen]
    if others:
        said.append(
            f"it holds several weights: those {_places(raw)} are loaded; key= chooses averaged ones, {_places(others)}"
        )
    elif chosen.averaged and key is None:
        said.append(f"its only weights, {_places(raw)}, are averaged")
    if chosen.left_out:
        said.append(f"left out as no part of the model: {first_few(chosen.left_out)}")
    return chosen, said


def _has_values(tensor: Tensor) -> bool:
    """Whether a tensor is dense and has data."""
    return not tensor.is_meta and tensor.layout == torch.strided


def _places(models: list[StateDict]) -> str:
    return ", ".join(f"under {model.place!r}" if model.place else "under no key" for model in models)


def _dictionaries(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary with tensors in it, and the keys that lead to it."""
    if not isinstance(content, Mapping) or len(keys) > _DEPTH:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for name, value in named.items():
        if not _OPTIMIZER.search(name):
            yield from _dictionaries(value, (*keys, name))


def _models(tensors: dict[str, Tensor], keys: tuple[str, ...], path: Path) -> Iterator[StateDict]:
    """The models whose tensors are in one dictionary, each under its own prefix."""
    tensors = _unwrapped(tensors, path)
    prefixes: dict[str, Layout] = {}
    for layout, patches in _PATCHES.items():
        for name in tensors:
            if match := re.fullmatch(rf"((?:.*?\.)??){patches}", name):
                prefixes.setdefault(match[1], layout)
    owner = {
        name: max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None) for name in tensors
    }
    for prefix, layout in prefixes.items():
        model = {name.removeprefix(prefix): tensors[name] for name in tensors if owner[name] == prefix}
        counted = model.pop("n_averaged", None) is not None
        if layout == "ours" and "patch_embed.weight" in model:  # the state dict of an encoder alone
            model = {f"encoder.{name}": tensor for name, tensor in model.items()}
        place = ".".join([*keys, *prefix.split(".")[:-1]])
        yield StateDict(
            model,
            layout,
            place,
            counted or not _AVERAGED.isdisjoint(re.split(r"[\W_]+", place)),
            [name for name in tensors if owner[name] is None and name != "n_averaged"],
        )


def _unwrapped(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors without the wrappers in their names."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain and not _same(plain[short], tensor):
            raise ValueError(f"{path} holds two tensors {short!r} that differ, under different wrappers")
        plain[short] = tensor
    return plain


def _same(a: Tensor, b: Tensor) -> bool:
    return _has_values(a) and _has_values(b) and a.dtype == b.dtype and torch.equal(a, b)


def _unknown(content: Any, path: Path) -> StateDict:
    """The tensors of a file in which no model was found."""
    dictionaries = [tensors for _, tensors in _dictionaries(content, ())]
    if not dictionaries:
        got = type(content).__name__
        if isinstance(content, Mapping):
            keys = first_few([str(key) for key in content])
            got = f"a dict of {keys} without tensors by name" if content else "an empty dict"
        raise ValueError(f"{path} must hold a state dict (alone or under 'model'), got {got}")
    return StateDict(_unwrapped(max(dictionaries, key=len), path), None, "", averaged=False, left_out=[])
