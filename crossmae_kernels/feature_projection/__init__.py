"""Keys and values of all decoder blocks from feature maps: mix, normalise, project."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossmae_kernels.environment import Implementation
from crossmae_kernels.feature_mixing import mixed
from crossmae_kernels.feature_mixing.cpu import SUMS
from crossmae_kernels.feature_projection import ops, reference
from crossmae_kernels.feature_projection.config import refusals
from crossmae_kernels.norm_folding.ops import fold_norms
from crossmae_kernels.runtime.autocast import compute_dtype
from crossmae_kernels.runtime.checks import ArgumentChecks
from crossmae_kernels.runtime.cpu_linear import LINEAR
from crossmae_kernels.runtime.dispatch import choose


def project_feature_maps(
    maps: Sequence[Tensor],
    mixing_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float = 1e-6,
    impl: Implementation = "auto",
) -> tuple[Tensor, ...]:
    """``LayerNorm_l(sum_j mixing_weight[l, j] * maps[j]) weights[l]^T + biases[l]`` for every decoder block l.

    The kernels fold the norms' affine into the projections. The fold's cost grows with the weights and its gain with
    the tokens, so the reference, which runs small batches on a CPU, does not.

    Args:
        maps: k feature maps, each ``(B, K, E)``.
        mixing_weight: ``(n, k)``, one row per decoder block.
        norm_weight: LayerNorm scales ``(n, E)``.
        norm_bias: LayerNorm shifts ``(n, E)``.
        weights: n times ``(O, E)``.
        biases: n times ``(O,)``.
        eps: added to the variance.
        impl: the implementation, see ``crossmae_kernels``.

    Returns:
        n times ``(B, K, O)``.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, dtype, shape or device, before any work.
        RuntimeError: with ``impl="triton"`` if the kernels cannot run the call, with every reason.
    """
    checks = ArgumentChecks("project_feature_maps")
    given = maps, mixing_weight, norm_weight, norm_bias, weights, biases, eps
    chosen, compute = _choose(checks, *given, impl)
    if chosen != "triton":
        return reference.project_feature_maps(*given, LINEAR[chosen], SUMS[chosen])
    return ops.project(*_folded(*given, compute, impl))


def project_keys_and_values(
    maps: Sequence[Tensor],
    mixing_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float = 1e-6,
    impl: Implementation = "auto",
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """``project_feature_maps`` to keys and values; with kernels, without what all tokens have in common.

    A term common to all keys adds the same to every score of a query, which softmax ignores: nothing depends on it, and
    its gradient is exactly zero. A term common to all values passes through attention unchanged, since weights sum to
    1, so it is returned instead, to be added after attention: to its output or, in weight space, to the bias of the
    next linear layer (``fold_norm`` with it as ``norm_bias``). If weights do not sum to 1 they are NaN, and so is the
    output either way. Keys and values are then written once by one batched product without bias, whose gradient would
    be a sum over all of them.

    Args:
        maps: see ``project_feature_maps``, as for the other arguments and the errors.
        weights: n times ``(2 D, E)``, keys first.
        biases: n times ``(2 D,)``.

    Returns:
        n times keys and values ``(B, K, 2 D)``, and what to add to attention's outputs, ``(n, D)``, or None if nothing.
    """
    checks = ArgumentChecks("project_keys_and_values")
    given = maps, mixing_weight, norm_weight, norm_bias, weights, biases, eps
    chosen, compute = _choose(checks, *given, impl, parts=2)
    if chosen != "triton":
        return reference.project_feature_maps(*given, LINEAR[chosen], SUMS[chosen]), None
    mixes, weight, bias = _folded(*given, compute, impl)
    return ops.project(mixes, weight, None), bias.unflatten(1, (2, -1))[:, 1]


def _choose(
    checks: ArgumentChecks,
    maps: Sequence[Tensor],
    mixing_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
    impl: Implementation,
    parts: int = 1,
) -> tuple[str, torch.dtype]:
    """Raise what is wrong with the arguments, or return the implementation and the dtype of products."""
    maps = checks.tensors("maps", maps, "B K E")
    checks.tensor("mixing_weight", mixing_weight, f"n {len(maps) or 'k'}")
    checks.tensor("norm_weight", norm_weight, "n E")
    checks.tensor("norm_bias", norm_bias, "n E")
    weights = checks.tensors("weights", weights, "O E")
    biases = checks.tensors("biases", biases, "O")
    checks.number("eps", eps, least=0)
    blocks = checks.size("n")
    for name, several in (("weights", weights), ("biases", biases)):
        checks.that(
            not several or len(several) == blocks,
            f"{name} must hold one tensor for each of {blocks} rows, got {len(several)}",
        )
    outer = checks.size("O")
    checks.that(outer % parts == 0, f"weights must have rows for {parts} vectors of one width, got {outer}")
    checks.raise_if_any()
    compute = compute_dtype(weights[0])
    reasons = refusals(maps, mixing_weight, weights, (*biases, norm_weight, norm_bias), compute)
    on_gpu, on_cpu = mixing_weight.is_cuda, mixing_weight.is_cpu
    return choose(checks.op, impl, reasons, worthwhile=on_gpu, cpu=on_cpu), compute


def _folded(
    maps: Sequence[Tensor],
    mixing_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: float,
    compute: torch.dtype,
    impl: Implementation,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised mixes, and stacked weights and biases for them."""
    weight, bias = fold_norms(weights, torch.stack([*biases]), norm_weight, norm_bias, compute)
    assert bias is not None
    mixes = mixed(impl, maps, mixing_weight.to(compute_dtype(mixing_weight)), None, None, eps, True)
    return mixes, weight, bias
