"""Check that a model computes the same with our forwards as with its own, and match our results to its outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from crossmae.acceleration.contract import Result, Setting, Template
from crossmae.acceleration.observation import Observation

# Rounding errors accumulate through a model. All distances are root mean squares, relative to the model's own values.
_DEEP = 30
_LEAST = 1e-4


def agree(
    own: Mapping[Setting, Observation],
    ours: Mapping[Setting, Observation],
    names: tuple[str, ...],
    within: torch.dtype | None,
) -> dict[Setting, Template]:
    """Check agreement; returns a template of the model's output for each setting.

    Args:
        own: observed with the model's own forwards.
        ours: observed with ours, which return all results in ``names`` as a tuple.
        names: of our results.
        within: a dtype in which products may be computed without blocks and results showing it: autocast's, or that
            of shards; residuals and a loss stay float32.

    Raises:
        ValueError: naming the first block, result or gradient that differs.
    """
    templates = {}
    for setting, theirs in own.items():
        dtype = _coarsest(theirs, within)
        _compare_blocks(theirs, ours[setting], dtype)
        results = dict(zip(names, ours[setting].output, strict=True))
        templates[setting] = _template(theirs.output, results, "its result", dtype)
    return templates


def compare_steps(own: Observation, ours: Observation) -> None:
    """Raise ValueError if the number of block calls differs, or a gradient differs or exists only on one side."""
    if own.calls != ours.calls:
        path = next(p for p in {**own.calls, **ours.calls} if own.calls[p] != ours.calls[p])
        raise ValueError(
            f"accelerate: the model calls {path} {own.calls[path]} times per step, but would call it "
            f"{ours.calls[path]} times (checkpoint_wrapper is the supported way to checkpoint blocks)"
        )
    present = [gradient for gradient in own.gradients.values() if gradient is not None]
    # Some are zero up to rounding, such as those of weights before a norm that divides by their size.
    floor = 1e-3 * max((_rms(gradient) for gradient in present), default=0.0)
    dtype = _coarsest(own)
    for name, gradient in own.gradients.items():
        other = ours.gradients.get(name)
        if (gradient is None) != (other is None):
            changes = "get a gradient" if gradient is None else "lose its gradient"
            raise ValueError(f"accelerate: {name} would {changes}; the model's own forward detaches other tensors")
        if gradient is not None and other is not None:
            distance, allowed = _distance(other, gradient, floor), 10 * _tolerance(gradient, dtype)
            if not distance <= allowed:
                raise ValueError(f"accelerate: {_other(f'the gradient of {name}', distance, allowed)}")


def compare_outputs(own: Any, ours: Any, where: str) -> None:
    """Raise ValueError if two outputs differ in structure, or their tensors by more than rounding.

    Args:
        own: a module's output with its own forward.
        ours: its output with ours.
        where: names the module in messages.
    """
    (theirs, structure), (found, other) = tree_flatten(own), tree_flatten(ours)
    if structure != other or len(theirs) != len(found):
        kinds = [f"{type(output).__name__} of {len(tree_leaves(output))}" for output in (own, ours)]
        raise ValueError(f"accelerate: {where} returns a {kinds[0]}, but would return a {kinds[1]}")
    for expected, leaf in zip(theirs, found, strict=True):
        if not isinstance(expected, Tensor) or not isinstance(leaf, Tensor):
            if type(expected) is not type(leaf) or expected != leaf:
                raise ValueError(f"accelerate: {where} returns {expected!r}, but would return {leaf!r}")
            continue
        if (expected.shape, expected.dtype) != (leaf.shape, leaf.dtype):
            shapes = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (expected, leaf)]
            raise ValueError(f"accelerate: {where} returns {shapes[0]}, but would return {shapes[1]}")
        dtype = expected.dtype if expected.is_floating_point() else torch.float32
        distance, allowed = _distance(leaf, expected), _tolerance(expected, dtype)
        if not distance <= allowed:
            raise ValueError(f"accelerate: {_other(f'the output of {where}', distance, allowed)}")


def _compare_blocks(theirs: Observation, ours: Observation, dtype: torch.dtype) -> None:
    if len(theirs.blocks) != len(ours.blocks):
        raise ValueError(
            f"accelerate: the model calls its blocks {len(theirs.blocks)} times, but would call them "
            f"{len(ours.blocks)} times"
        )
    for (path, output), (other_path, found) in zip(theirs.blocks, ours.blocks, strict=True):
        if path != other_path or output.shape != found.shape:
            raise ValueError(
                f"accelerate: the model's {path} returns {tuple(output.shape)}, but {other_path} would return "
                f"{tuple(found.shape)}"
            )
        distance, allowed = _distance(found, output), _tolerance(output, dtype)
        if not distance <= allowed:
            raise ValueError(f"accelerate: {_other(f'the output of {path}', distance, allowed)}")


def _template(output: Any, results: Mapping[str, Tensor], where: str, dtype: torch.dtype) -> Template:
    if output is None:
        return None
    if type(output) is dict:
        return {name: _template(part, results, f"{where}[{name!r}]", dtype) for name, part in output.items()}
    if type(output) in (tuple, list):
        parts = (_template(part, results, f"{where}[{index}]", dtype) for index, part in enumerate(output))
        return type(output)(parts)
    if not isinstance(output, Tensor):
        raise ValueError(f"accelerate: {where} is of {type(output)}; supported are tensors, tuples, lists and dicts")
    what = f"{where}, {output.dtype} {tuple(output.shape)},"
    distances = {name: _distance(r, output) for name, r in results.items() if r.shape == output.shape}
    if not distances:
        raise ValueError(f"accelerate: {what} has the shape of none of the supported results: {', '.join(results)}")
    closest = min(distances, key=distances.__getitem__)
    allowed = _tolerance(output, dtype)
    if not distances[closest] <= allowed:
        nearest = f"{what} which comes closest to the {closest},"
        raise ValueError(f"accelerate: {_other(nearest, distances[closest], allowed)}")
    found = results[closest]
    detached = found.requires_grad and not output.requires_grad
    return Result(closest, detached, None if found.dtype == output.dtype else output.dtype)


def _other(what: str, distance: float, allowed: float) -> str:
    return (
        f"{what} differs from ours by {distance:.1e} (root mean square); {allowed:.0e} is allowed. Something in the "
        "model's own forward is unlike the supported models"
    )


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def _distance(ours: Tensor, theirs: Tensor, floor: float = 1e-30) -> float:
    """Relative root mean square distance; infinite if either is not finite."""
    distance = _rms(ours.double() - theirs.double()) / max(_rms(theirs), floor)
    return distance if distance == distance else float("inf")


def _coarsest(seen: Observation, within: torch.dtype | None = None) -> torch.dtype:
    """The coarsest dtype in which anything was computed, including one that does not show."""
    tensors = [output for _, output in seen.blocks] + [t for t in tree_leaves(seen.output) if isinstance(t, Tensor)]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} | ({within} if within else set())
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _tolerance(like: Tensor, dtype: torch.dtype) -> float:
    """Many times the error of one product in ``dtype`` where ``like`` is."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator, device="cpu").to(like.device, dtype) for _ in range(2))
    exact = a.double() @ b.double()
    convolved = torch.nn.functional.conv2d(a[:, :, None, None], b.t()[:, :, None, None])[..., 0, 0]
    return max(_LEAST, *(_DEEP * _distance(product, exact) for product in (a @ b, convolved)))
