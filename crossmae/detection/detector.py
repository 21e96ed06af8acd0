"""torchvision's Mask R-CNN with ViTDet's backbone and heads, and its configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as TF

from crossmae.detection.backbone import ViTDet, last_map, use_windows
from crossmae.detection.jitter import Target
from crossmae.detection.pyramid import channel_norm
from crossmae.model import MaskedAutoencoder
from crossmae.model.values import pair
from crossmae.training.task import TrainedModule


@dataclass(frozen=True)
class HeadConfig:
    """Settings of a detector, beside its encoder's.

    Attributes:
        categories: annotation id and name of each; the i-th is the network's label i + 1, 0 is background.
        window: side of the attention windows, in patches.
        width: channels of feature maps and of the heads' convolutions; the box head's linear layer has 4 times as many.
        options: numeric arguments of torchvision's ``MaskRCNN``, such as ``box_score_thresh``.
    """

    categories: tuple[tuple[int, str], ...]
    window: int = 14
    width: int = 256
    options: dict[str, Any] = field(default_factory=dict)


# Allowed in ``HeadConfig.options``: numbers, not modules.
_PARTS = ("_generator", "_head", "_pool", "_predictor")
_OPTIONS = [
    n for n in signature(MaskRCNN).parameters if n.startswith(("rpn_", "box_", "bbox_")) and not n.endswith(_PARTS)
]


class Detector(TrainedModule):
    """Mask R-CNN with ViTDet's heads (appendix A.2): more convolutions than usual, each with a LayerNorm.

    ``model`` is an encoder without decoder, with a ``backbone_config`` and pixel statistics; its attention is windowed
    in place.

    Raises:
        ValueError: if ``head.options`` has options that torchvision's ``MaskRCNN`` does not accept.
    """

    def __init__(self, model: MaskedAutoencoder, head: HeadConfig) -> None:
        super().__init__()
        if unknown := sorted(head.options.keys() - set(_OPTIONS)):
            raise ValueError(f"detector_options: no option {', '.join(unknown)}; choose from {', '.join(_OPTIONS)}")
        self.model, self.head = model, head
        config, width, classes, patch = (
            model.config,
            head.width,
            1 + len(head.categories),
            pair(model.config.patch_size)[0],
        )
        assert config.pixel_mean is not None
        assert config.pixel_std is not None
        model.encoder.cls_token.requires_grad_(False)  # it has no rows
        use_windows(model.encoder, head.window)
        # For five maps with strides from a quarter patch to 4: 8 strides each, 32 to 512 pixels for patches of 16.
        anchors = AnchorGenerator(tuple((2 * patch * 2**level,) for level in range(5)), ((0.5, 1.0, 2.0),) * 5)
        self.rcnn = MaskRCNN(
            ViTDet(self.features, config.encoder_width, width),
            rpn_anchor_generator=anchors,
            rpn_head=RPNHead(width, 3, conv_depth=2),
            box_head=FastRCNNConvFCHead((width, 7, 7), [width] * 4, [4 * width], norm_layer=channel_norm),
            box_predictor=FastRCNNPredictor(4 * width, classes),
            mask_head=MaskRCNNHeads(width, [width] * 4, dilation=1, norm_layer=channel_norm),
            mask_predictor=MaskRCNNPredictor(width, width, classes),
            **head.options,
        )
        self.rcnn.transform = _Square(config.image_size[0], config.pixel_mean, config.pixel_std)

    def features(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, C, S, S)`` -> the encoder's last map ``(B, E, rows, columns)``."""
        return last_map(self.model.encoder, images)

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """The sum of Mask R-CNN's five losses for images ``(C, h, w)``, uint8, that fit the square."""
        losses: dict[str, Tensor] = self.rcnn(list(map(self._shares, images)), list(targets))
        return torch.stack([*losses.values()]).sum()

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Detect objects in images ``(C, h, w)``, uint8, of any size; the module's mode is restored afterwards.

        Returns:
            For each image ``boxes`` (N, 4), ``labels`` (N,), ``scores`` (N,) and ``masks`` (N, 1, h, w), probabilities.
        """
        was_training = self.training
        self.eval()
        try:
            found: list[dict[str, Tensor]] = self.rcnn(list(map(self._shares, images)))
        finally:
            self.train(was_training)
        return found

    def _shares(self, image: Tensor) -> Tensor:
        return image.to(self.model.encoder.patch_embed.weight.dtype) / 255


class _Square(GeneralizedRCNNTransform):
    """Pads images at the bottom and right to a square, and outside of training scales them to fit it first."""

    def __init__(self, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(side, side, list(mean), list(std), size_divisible=side)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Scale ``(C, h, w)`` so that its longer side fits the square; training images are already scaled by jitter."""
        if self.training:
            return image, target
        scale = self.max_size / max(image.shape[-2:])
        return TF.resize(image, [max(1, round(scale * side)) for side in image.shape[-2:]], antialias=True), target
