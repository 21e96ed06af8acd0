"""Augment a batch on its device: random erasing, mixup and CutMix, and the resulting targets."""

from torch import Tensor

from crossmae.training.data.randomness import others_seeded
from crossmae.training.finetuning.recipe import FinetuningRecipe


class Mixing:
    """timm's random erasing, then its mixup or CutMix of each image i with image B - 1 - i of the batch.

    Args:
        recipe: rates and label smoothing.
        classes: number of classes.
    """

    def __init__(self, recipe: FinetuningRecipe, classes: int) -> None:
        from timm.data.mixup import Mixup

        self._erasing, self._smoothing, self._classes = recipe.erasing, recipe.label_smoothing, classes
        self._mixup = None
        if recipe.mixes:
            self._mixup = Mixup(
                recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=classes
            )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(B, C, H, W)``, normalised, and labels ``(B,)`` -> images and targets ``(B, classes)``.

        Images are changed in place. Rows of targets, float32, sum to 1. All randomness comes from PyTorch's generators.
        """
        from timm.data.mixup import mixup_target
        from timm.data.random_erasing import RandomErasing

        with others_seeded():
            if self._erasing:
                images = RandomErasing(self._erasing, mode="pixel", device=images.device)(images)
            if self._mixup is not None:
                return self._mixup(images, labels)
        return images, mixup_target(labels, self._classes, 1.0, self._smoothing)
