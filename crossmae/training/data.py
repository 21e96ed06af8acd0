"""Images to train on that need no download."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LabelledImages:
    """Standardised images ``(N, C, H, W)``, float32, and labels ``(N,)``, int64."""

    images: Tensor
    labels: Tensor


def digits(image_size: int = 32, test_share: float = 0.25) -> tuple[LabelledImages, LabelledImages]:
    """scikit-learn's 1,797 scanned handwritten digits, greyscale, enlarged from 8 x 8; a training and a test set.

    The split is fixed and stratified by class; both parts are standardised with the training part's mean and spread.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    images = torch.from_numpy(scans.images).float()[:, None]
    images = F.interpolate(images, size=(image_size, image_size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(scans.target).long()
    train, test = train_test_split(torch.arange(len(labels)), test_size=test_share, stratify=labels, random_state=0)
    spread, mean = torch.std_mean(images[train])
    images = (images - mean) / spread
    return LabelledImages(images[train], labels[train]), LabelledImages(images[test], labels[test])
