"""What happens to a batch on its device: random erasing, mixup and CutMix, and the targets that come of it."""

from torch import Tensor

from crossmae.training.data.randomness import others_seeded
from crossmae.training.finetuning.recipe import FinetuningRecipe


class Mixing:
    """timm's random erasing, then its mixup or CutMix of each image with the one as far from the batch's other end.

    Args:
        recipe: rates and label smoothing.
        classes: how many there are.
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

        Images are changed in place. Rows of targets, float32, add up to 1. PyTorch's generators decide all that is
        random.
        """
        from timm.data.mixup import mixup_target
        from timm.data.random_erasing import RandomErasing

        with others_seeded():
            if self._erasing:
                images = RandomErasing(self._erasing, mode="pixel", device=images.device)(images)
            if self._mixup is not None:
                return self._mixup(images, labels)
        return images, mixup_target(labels, self._classes, 1.0, self._smoothing)
