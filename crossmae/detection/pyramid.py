"""The simple feature pyramid: maps of four strides from a plain backbone's last map."""

from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import Conv2dNormActivation

channel_norm = partial(LayerNorm2d, eps=1e-6)


class SimpleFeaturePyramid(nn.Module):
    """Maps of 1/4, 1/2, 1 and 2 times the stride of one map (ViTDet, section 3 and appendix A.2).

    Deconvolutions enlarge it and max pooling halves it; a 1 x 1 and a 3 x 3 convolution follow, each with a LayerNorm.
    The last map, halved once more, serves proposals for the largest objects (as in FPN, arXiv 1612.03144).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        four = [nn.ConvTranspose2d(channels, half, 2, 2), channel_norm(half), nn.GELU()]
        self.scales = nn.ModuleList(
            [
                nn.Sequential(*four, nn.ConvTranspose2d(half, quarter, 2, 2)),
                nn.ConvTranspose2d(channels, half, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        convolution = partial(Conv2dNormActivation, norm_layer=channel_norm, activation_layer=None)
        self.outputs = nn.ModuleList(
            nn.Sequential(convolution(width, out_channels, 1), convolution(out_channels, out_channels, 3))
            for width in (quarter, half, channels, channels)
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """``(B, D, h, w)`` -> ``(B, out, 4 h, 4 w)`` to ``(B, out, h / 2, w / 2)``, named "0" to "3", and "pool"."""
        maps = [output(scale(x)) for scale, output in zip(self.scales, self.outputs, strict=True)]
        return OrderedDict([*((str(i), m) for i, m in enumerate(maps)), ("pool", F.max_pool2d(maps[-1], 1, 2))])
