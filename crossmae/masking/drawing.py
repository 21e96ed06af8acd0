"""Random masks: how many patches are visible and predicted, and which."""

from fractions import Fraction
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from crossmae.masking.masks import Masking
from crossmae.noise import uniform
from crossmae_kernels.runtime.checks import traced

Rounding = Literal["exact", "release"]


def mask_counts(
    patches: int, mask_ratio: float, prediction_ratio: float, rounding: Rounding = "exact"
) -> tuple[int, int]:
    """How many patches are visible and how many are predicted.

    ``"exact"`` takes the ratios as the decimal numbers they are written as and rounds the number of masked and of
    predicted patches to the nearest integer, halves up. ``"release"`` truncates floating-point products as the
    authors' release does, where 225 patches at ratio 0.8 leave 44 visible and not 45.

    Compiled code has a graph for every pair of ratios: counts are sizes, and no compiler computes a size from a number
    that it does not know. A mask that is drawn outside and passed in comes with its sizes, of which one graph serves
    all.
    """
    require_number("mask_ratio", mask_ratio)
    require_number("prediction_ratio", prediction_ratio)
    mask_ratio, prediction_ratio = known(mask_ratio), known(prediction_ratio)
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie in (0, 1), got {mask_ratio}")
    if not 0 < prediction_ratio <= mask_ratio:
        raise ValueError(f"prediction_ratio must lie in (0, mask_ratio = {mask_ratio}], got {prediction_ratio}")
    if rounding == "exact":
        masked = nearest(patches, mask_ratio)
        visible, predicted = patches - masked, nearest(patches, prediction_ratio)
    elif rounding == "release":
        visible = int(patches * (1 - mask_ratio))
        predicted = patches - visible - int(patches * (mask_ratio - prediction_ratio))
    else:
        raise ValueError(f"rounding must be 'exact' or 'release', got {rounding!r}")
    for what, count in (("visible", visible), ("predicted", predicted)):
        if count < 1:
            raise ValueError(
                f"no patch would be {what}: {patches} patches, mask_ratio {mask_ratio}, "
                f"prediction_ratio {prediction_ratio}"
            )
    return visible, predicted


def require_number(name: str, ratio: float) -> None:
    """Raise TypeError for anything else."""
    if not isinstance(ratio, Real):
        raise TypeError(f"{name} must be a number, got {ratio!r}")


def known(ratio: float) -> float:
    """The same number, known to a compiler, to which a ratio that changes between calls is a symbol otherwise.

    To put a symbol into a set is to ask for its hash, and so for its value; its string is refused, or is the symbol.
    """
    (value,) = {ratio}
    return value


def nearest(patches: int, ratio: float) -> int:
    """``patches * ratio``, the ratio read as a decimal, to the nearest integer, halves up."""
    share = Fraction(str(ratio))
    return (2 * patches * share.numerator + share.denominator) // (2 * share.denominator)


def random_masking(
    batch: int,
    patches: int,
    mask_ratio: float = 0.75,
    prediction_ratio: float = 0.25,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    rounding: Rounding = "exact",
) -> Masking:
    """A uniformly random mask per image (MAE, section 3; CrossMAE, section 3.2).

    The patches of lowest noise are visible, those of highest noise are predicted, in ascending order; what lies
    between is neither.

    Args:
        batch: number of images.
        patches: patches of an image.
        mask_ratio: share of patches hidden from the encoder, in (0, 1).
        prediction_ratio: share of all patches to predict, in (0, mask_ratio].
        noise: ``(batch, patches)`` to sort by; drawn uniformly unless given.
        generator: for the noise.
        device: for the noise; the noise's or the generator's own unless given.
        rounding: see ``mask_counts``.
    """
    visible, predicted = mask_counts(patches, mask_ratio, prediction_ratio, rounding)
    noise = given_or_drawn(noise, batch, patches, "patches", generator, device)
    return by_order(noise.argsort(dim=1), visible, predicted)


def given_or_drawn(
    given: Tensor | None,
    batch: int,
    count: int,
    what: str,
    generator: torch.Generator | None,
    device: torch.device | str | None,
) -> Tensor:
    """Noise ``(batch, count)``, drawn unless given.

    Raises TypeError or ValueError if what is given is no tensor, of another shape or, as far as it can be seen without
    waiting for an accelerator, holds NaN, which has no place in an order.
    """
    if given is None:
        return uniform((batch, count), generator, device)
    if not isinstance(given, Tensor):
        raise TypeError(f"noise must be a tensor, got {type(given).__name__}")
    if given.shape != (batch, count):
        raise ValueError(f"noise must have shape (batch, {what}) = ({batch}, {count}), got {tuple(given.shape)}")
    if given.device.type == "cpu" and not traced(given) and given.isnan().any():
        raise ValueError("noise must be finite to order patches by it, got NaN")
    return given.to(device=device)


def by_order(order: Tensor, visible: int, predicted: int) -> Masking:
    """The first patches of an order ``(B, L)`` are visible, the last are predicted."""
    patches = order.shape[1]
    return Masking(order[:, :visible], order[:, patches - predicted :].sort(dim=1).values, patches)
