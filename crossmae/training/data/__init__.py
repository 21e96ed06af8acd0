"""Images to train on: real ones that need no download, and folders of your own."""

import os
from dataclasses import dataclass
from pathlib import Path

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


def image_folder(folder: str | os.PathLike[str], image_size: tuple[int, int], channels: int = 3) -> Tensor:
    """All pictures below a folder, nested or flat, in the order of their paths: ``(N, C, H, W)``, standardised.

    Each is scaled to cover ``image_size`` (height, width) and cropped at its centre; one channel means greyscale.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is no such folder.
        ValueError: if the folder holds no file, or one that is no picture, which is named.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    folder = Path(folder)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (greyscale) or 3 (RGB), got {channels}")
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a folder of pictures is needed")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise ValueError(f"there is no picture in {folder}")
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                converted = picture.convert("L" if channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no picture that can be read: {error}") from error
        pictures.append(np.asarray(ImageOps.fit(converted, image_size[::-1], Image.Resampling.BICUBIC)))
    images = torch.from_numpy(np.stack(pictures)).view(len(pictures), *image_size, channels).permute(0, 3, 1, 2)
    spread, mean = torch.std_mean(images.float())
    return (images.float() - mean) / spread
