"""Random masks: how many patches are visible and predicted, and which."""

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from crossmae.masking.masks import Masking
from crossmae.noise import uniform

Rounding = Literal["exact", "release"]


def mask_counts(
    patches: int, mask_ratio: float, prediction_ratio: float, rounding: Rounding = "exact"
) -> tuple[int, int]:
    """How many patches are visible and how many are predicted.

    ``"exact"`` takes ratios as the decimal numbers they are written as and rounds the numbers of masked and predicted
    patches to the nearest integer, halves up. ``"release"`` truncates floating-point products like the authors'
    release, so that 225 patches at ratio 0.8 leave 44 visible instead of 45.

    Compiled code has one graph per pair of ratios, as counts are sizes and the compiler needs known numbers to compute
    them. With a mask drawn outside and passed in, one graph works for all sizes.
    """
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


def known(ratio: float) -> float:
    """The same number as a constant to the compiler, which otherwise makes a symbol of a ratio that changes.

    Putting a symbol into a set asks for its hash and so specializes its value; converting it to a string does not.
    """
    (value,) = {ratio}
    return value


def nearest(patches: int, ratio: float) -> int:
    """``patches * ratio``, with the ratio taken as a decimal, rounded to the nearest integer, halves up."""
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

    The patches with the lowest noise are visible and those with the highest are predicted, in ascending order; the
    others are neither.

    Args:
        batch: number of images.
        patches: number of patches per image.
        mask_ratio: fraction of patches hidden from the encoder, in (0, 1).
        prediction_ratio: fraction of all patches to predict, in (0, mask_ratio].
        noise: ``(batch, patches)`` to sort by; by default drawn uniformly.
        generator: for the noise.
        device: for the noise; by default the noise's or the generator's.
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
    """Noise ``(batch, count)``, drawn unless given; raises ValueError if the given noise has another shape."""
    if given is None:
        return uniform((batch, count), generator, device)
    if given.shape != (batch, count):
        raise ValueError(f"noise must have shape (batch, {what}) = ({batch}, {count}), got {tuple(given.shape)}")
    return given.to(device=device)


def by_order(order: Tensor, visible: int, predicted: int) -> Masking:
    """The first patches of an order ``(B, L)`` are visible, the last are predicted."""
    patches = order.shape[1]
    return Masking(order[:, :visible], order[:, patches - predicted :].sort(dim=1).values, patches)
