"""Pictures to read, generated: JPEGs of 500 x 375 whose files are about as large as ImageNet's."""

from pathlib import Path

import numpy as np
from PIL import Image

from crossmae.training.data.config import DataConfig
from crossmae.training.data.dataset import ImageDataset
from crossmae.training.data.factory import open_images


def jpegs(folder: Path, count: int) -> ImageDataset:
    """Write ``count`` of them into a folder; random crops of 224 pixels of these."""
    rng = np.random.default_rng(0)
    for number in range(count):
        blobs = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
        blobs.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg", quality=92)
    return open_images(DataConfig(str(folder)), channels=3, image_size=(224, 224), mask_noise=196)
