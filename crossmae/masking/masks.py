"""A mask: which patches the encoder sees and which the decoder predicts, as ids."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree

from crossmae.noise import uniform
from crossmae_kernels.runtime.checks import traced


@dataclass(frozen=True)
class Masking:
    """Ids of visible patches ``(B, V)`` and of predicted patches ``(B, Q)``, int64.

    ``patches`` is the patch count for which the ids are known to be valid, set by this module's functions and by
    ``checked``. A model checks a mask without a patch count.
    """

    visible_ids: Tensor
    predicted_ids: Tensor
    patches: int | None = None

    @classmethod
    def from_mask(
        cls,
        masked: Tensor,
        predicted: Tensor | None = None,
        trim: bool = False,
        generator: torch.Generator | None = None,
    ) -> "Masking":
        """Create a mask from boolean masks, such as Hugging Face's ``bool_masked_pos``.

        Reads the masks, so it waits for them on an accelerator.

        Args:
            masked: bool ``(B, L)``, True where a patch is hidden from the encoder. Flatten rows and columns
                first, as ids do not store the grid.
            predicted: the same shape, True where a masked patch is to be predicted; by default all masked patches.
            trim: if images differ in their numbers of visible or predicted patches, keep as many of each as the image
                with the fewest has, drawn at random; the others are neither seen nor predicted. Without it such masks
                are refused, since all images of a batch must have equally many tokens.
            generator: for that draw.

        Raises:
            TypeError, ValueError: if masks have another dtype or different shapes, no visible or predicted patches,
                different counts without ``trim``, or predicted patches that are visible.
        """
        flags = {"masked": masked} if predicted is None else {"masked": masked, "predicted": predicted}
        for name, mask in flags.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise TypeError(f"{name} must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
            if mask.shape != masked.shape or mask.ndim != 2 or mask.numel() == 0:
                raise ValueError(
                    f"{name} must have shape (batch, patches), the same as masked, of at least one image, "
                    f"got {tuple(mask.shape)}"
                )
        asked = masked if predicted is None else predicted
        if (asked & ~masked).any():
            image, patch = (asked & ~masked).nonzero()[0].tolist()
            raise ValueError(
                f"a predicted patch must be masked; image {image} predicts patch {patch}, which is visible"
            )
        visible_ids = _ids("visible", ~masked, trim, generator)
        return cls(visible_ids, _ids("predicted", asked, trim, generator), masked.shape[1])

    def checked(self, patches: int) -> "Masking":
        """The same mask, validated for images of ``patches`` patches; ValueError or TypeError if it is not valid.

        Reads the ids, so it waits for them on an accelerator: check your own mask once, not at every step. Compiled
        code, which cannot read them, asserts on the device instead: RuntimeError if the mask is invalid.
        """
        if self.patches == patches:
            return self
        if self.patches is not None:
            raise ValueError(f"the masking is for images of {self.patches} patches, but these have {patches}")
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


# So that exported programs, and others that look for tensors in arguments and results, find a mask's tensors.
_pytree.register_dataclass(Masking)


def _ids(what: str, flags: Tensor, trim: bool, generator: torch.Generator | None) -> Tensor:
    """Ascending ids ``(B, N)`` of the True patches; with ``trim``, only as many as the image with the fewest has."""
    counts = flags.sum(dim=1)
    fewest, most = int(counts.min()), int(counts.max())
    if fewest == 0:
        raise ValueError(f"every image needs at least one {what} patch, but image {int(counts.argmin())} has none")
    if fewest < most and not trim:
        raise ValueError(
            f"every image must have as many {what} patches, got {fewest} in image {int(counts.argmin())} and {most} in "
            f"image {int(counts.argmax())}; trim=True keeps {fewest} of each, drawn at random"
        )
    order = uniform(tuple(flags.shape), generator) if fewest < most else torch.zeros(flags.shape)
    order = order.to(flags.device).masked_fill(~flags, 2.0)
    return order.argsort(dim=1, stable=True)[:, :fewest].sort(dim=1).values
