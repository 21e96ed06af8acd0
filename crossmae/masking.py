"""Which patches the encoder sees and which the decoder predicts, as ids.

Masks are ids throughout: no boolean mask, no data-dependent shape, and no wait for the device in what a training
step calls.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor
from torch.utils import _pytree

from crossmae.noise import uniform
from crossmae_kernels.runtime.checks import traced

Rounding = Literal["exact", "release"]
MaskShape = Literal["random", "grid", "block"]

_BLOCK_DRAWS = 3  # the row and the column of a block's centre, and its aspect


@dataclass(frozen=True)
class Masking:
    """Ids of visible patches ``(B, V)`` and of predicted patches ``(B, Q)``, int64.

    ``patches`` is the patch count for which the ids are known to be valid: set by the functions of this module and by
    ``checked``. A model checks a mask that does not carry its patch count.
    """

    visible_ids: Tensor
    predicted_ids: Tensor
    patches: int | None = None

    def checked(self, patches: int) -> "Masking":
        """The same mask, validated for images of ``patches`` patches; ValueError or TypeError if it is not valid.

        Reads the ids, so on an accelerator it waits for them: check a mask of your own once, not every step. In
        compiled code, which cannot read them, a check on the device takes its place: RuntimeError if it is no mask.
        """
        if self.patches == patches:
            return self
        for name, ids in (("visible_ids", self.visible_ids), ("predicted_ids", self.predicted_ids)):
            if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
                raise TypeError(
                    f"{name} must be an int64 or int32 tensor, got {getattr(ids, 'dtype', type(ids).__name__)}"
                )
            if ids.ndim != 2 or ids.shape[1] == 0:
                raise ValueError(f"{name} must have shape (batch, count) with at least one id, got {tuple(ids.shape)}")
            if not traced(ids) and ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= patches):
                raise ValueError(
                    f"{name} must lie in [0, {patches}), got ids from {int(ids.min())} to {int(ids.max())}"
                )
        visible, predicted = self.visible_ids.long(), self.predicted_ids.long()
        if visible.shape[0] != predicted.shape[0] or visible.device != predicted.device:
            raise ValueError(
                f"visible_ids and predicted_ids must agree in batch and device, got {tuple(visible.shape)} on "
                f"{visible.device} and {tuple(predicted.shape)} on {predicted.device}"
            )
        ascending = torch.cat([visible, predicted], dim=1).sort(dim=1).values
        twice = ascending[:, 1:] == ascending[:, :-1]
        if traced(visible):
            inside = (ascending[:, 0] >= 0) & (ascending[:, -1] < patches)
            torch._assert_async(
                inside.all() & ~twice.any(),
                f"visible_ids and predicted_ids must lie in [0, {patches}), and no image may name a patch twice",
            )
        elif twice.any():
            image, place = twice.nonzero()[0].tolist()
            raise ValueError(
                "every patch may be visible or predicted once; "
                f"image {image} names patch {int(ascending[image, place])} twice"
            )
        return Masking(visible, predicted, patches)


# So that exported programs, and whatever else looks for tensors in arguments and results, find them in a mask.
_pytree.register_dataclass(Masking)


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
    mask_ratio, prediction_ratio = _known(mask_ratio), _known(prediction_ratio)
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie in (0, 1), got {mask_ratio}")
    if not 0 < prediction_ratio <= mask_ratio:
        raise ValueError(f"prediction_ratio must lie in (0, mask_ratio = {mask_ratio}], got {prediction_ratio}")
    if rounding == "exact":
        masked = _nearest(patches, mask_ratio)
        visible, predicted = patches - masked, _nearest(patches, prediction_ratio)
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


def _known(ratio: float) -> float:
    """The same number, known to a compiler, to which a ratio that changes between calls is a symbol otherwise.

    To put a symbol into a set is to ask for its hash, and so for its value; its string is refused, or is the symbol.
    """
    (value,) = {ratio}
    return value


def _nearest(patches: int, ratio: float) -> int:
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
    noise = _noise(noise, batch, patches, "patches", generator, device)
    return _by_order(noise.argsort(dim=1), visible, predicted)


def grid_masking(
    batch: int,
    grid: tuple[int, int],
    stride: int = 2,
    prediction_ratio: float | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Masking:
    """One visible patch in every ``stride x stride`` cell, its first (MAE, table 1f, "grid").

    ``prediction_ratio`` of all patches are predicted, drawn at random among the masked ones; all unless given.
    ``noise``, ``(batch, rows * columns)``, chooses them, drawn uniformly unless given.
    """
    if stride < 2:
        raise ValueError(f"stride must be at least 2, or nothing is masked, got {stride}")
    rows, columns = grid
    noise = _noise(noise, batch, rows * columns, "rows * columns", generator, device)
    corner = noise.new_zeros(rows, columns)
    corner[::stride, ::stride] = 1
    return _structured(noise - 2 * corner.flatten(), _cells(grid, stride), prediction_ratio)


def grid_stride(grid: tuple[int, int], mask_ratio: float) -> int:
    """The stride of the grid mask that hides just the share ``mask_ratio`` of ``(rows, columns)`` of patches.

    Raises:
        ValueError: if there is none, with the ratios of which there is one.
    """
    patches = grid[0] * grid[1]
    visible, _ = mask_counts(patches, mask_ratio, mask_ratio)
    strides: dict[int, int] = {}
    for stride in range(2, max(grid) + 1):
        strides.setdefault(_cells(grid, stride), stride)
    if visible not in strides:
        ratios = [f"{1 - cells / patches:.4g} (stride {stride})" for cells, stride in strides.items()]
        raise ValueError(
            f"a grid mask of {grid[0]} x {grid[1]} patches shows one patch of every stride x stride, which hides "
            f"{', '.join(ratios[:4])}; got mask_ratio {mask_ratio}"
        )
    return strides[visible]


def _cells(grid: tuple[int, int], stride: int) -> int:
    """How many ``stride x stride`` cells a grid has, those that its border cuts included."""
    return -(-grid[0] // stride) * -(-grid[1] // stride)


def block_masking(
    batch: int,
    grid: tuple[int, int],
    mask_ratio: float = 0.75,
    prediction_ratio: float | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Masking:
    """One masked block per image, of random place and aspect (as MAE's "block", table 1f), exact in count.

    The masked patches are the nearest to a random centre in a stretched maximum norm: a rectangle, cut at the
    border. ``prediction_ratio`` of all patches are predicted, drawn at random among the masked; all unless given.
    ``noise``, ``(batch, 3 + rows * columns)``, places and stretches the block and chooses these; drawn uniformly unless
    given.
    """
    rows, columns = grid
    visible, _ = mask_counts(rows * columns, mask_ratio, mask_ratio)
    noise = _noise(noise, batch, _BLOCK_DRAWS + rows * columns, "3 + rows * columns", generator, device)
    draw, noise = noise[:, :_BLOCK_DRAWS, None], noise[:, _BLOCK_DRAWS:]
    row = torch.arange(rows, device=draw.device).repeat_interleave(columns)
    column = torch.arange(columns, device=draw.device).repeat(rows)
    stretch = (2 * draw[:, 2] - 1).mul(0.7).exp()  # aspects from 1 : 2 to 2 : 1
    distance = torch.maximum(
        (row + 0.5 - draw[:, 0] * rows).abs() * stretch, (column + 0.5 - draw[:, 1] * columns).abs() / stretch
    )
    # Patches of a line are equally far: sorted stably, so that a mask is a function of its noise.
    masked = distance.argsort(dim=1, stable=True)[:, : rows * columns - visible]
    return _structured(
        torch.full_like(noise, -1).scatter(1, masked, noise.gather(1, masked)), visible, prediction_ratio
    )


def draw_masking(
    shape: MaskShape, grid: tuple[int, int], mask_ratio: float, prediction_ratio: float, noise: Tensor
) -> Masking:
    """Masks of a shape, as a function of noise ``(B, N)`` in which every image has its own ``noise_length`` values.

    Raises ValueError, as ``mask_counts`` and, for grids, ``grid_stride`` do.
    """
    batch = noise.shape[0]
    if shape == "random":
        return random_masking(batch, grid[0] * grid[1], mask_ratio, prediction_ratio, noise)
    if shape == "grid":
        return grid_masking(batch, grid, grid_stride(grid, mask_ratio), prediction_ratio, noise)
    if shape == "block":
        return block_masking(batch, grid, mask_ratio, prediction_ratio, noise)
    raise ValueError(f"shape must be 'random', 'grid' or 'block', got {shape!r}")


def noise_length(shape: MaskShape, patches: int) -> int:
    """How many random numbers in [0, 1) determine the mask of an image."""
    return patches + _BLOCK_DRAWS if shape == "block" else patches


def _noise(
    given: Tensor | None,
    batch: int,
    count: int,
    what: str,
    generator: torch.Generator | None,
    device: torch.device | str | None,
) -> Tensor:
    """Noise ``(batch, count)``, drawn unless given; raises ValueError if what is given has another shape."""
    if given is None:
        return uniform((batch, count), generator, device)
    if given.shape != (batch, count):
        raise ValueError(f"noise must have shape (batch, {what}) = ({batch}, {count}), got {tuple(given.shape)}")
    return given.to(device=device)


def _structured(priority: Tensor, visible: int, prediction_ratio: float | None) -> Masking:
    """The ``visible`` patches of lowest priority are seen, ``prediction_ratio`` of all, of highest, predicted."""
    patches = priority.shape[1]
    masked = patches - visible
    predicted = masked if prediction_ratio is None else _nearest(patches, _known(prediction_ratio))
    if not 0 < predicted <= masked:
        raise ValueError(
            f"prediction_ratio {prediction_ratio} asks for {predicted} of {patches} patches; "
            f"this mask has {masked} to predict, and at least one is needed"
        )
    return _by_order(priority.argsort(dim=1, stable=True), visible, predicted)


def _by_order(order: Tensor, visible: int, predicted: int) -> Masking:
    patches = order.shape[1]
    return Masking(order[:, :visible], order[:, patches - predicted :].sort(dim=1).values, patches)
