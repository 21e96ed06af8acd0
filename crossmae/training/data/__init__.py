"""Images to train and evaluate on: where they come from, how they are read, changed, ordered and put in batches."""

from crossmae.training.data.augmentation import Augmentation
from crossmae.training.data.batches import Batch, loader
from crossmae.training.data.bundled import LabelledImages, bundled_set, standardised
from crossmae.training.data.config import DataConfig, open_images
from crossmae.training.data.dataset import ImageDataset, Images, Sample
from crossmae.training.data.decoding import UnreadableImage, decode
from crossmae.training.data.evaluation import EvaluationSets, evaluation_loader, labelled
from crossmae.training.data.sampling import GlobalBatches
from crossmae.training.data.sources import Sources, find_sources
from crossmae.training.data.statistics import pixel_statistics

__all__ = [
    "Augmentation",
    "Batch",
    "DataConfig",
    "EvaluationSets",
    "GlobalBatches",
    "ImageDataset",
    "Images",
    "LabelledImages",
    "Sample",
    "Sources",
    "UnreadableImage",
    "bundled_set",
    "decode",
    "evaluation_loader",
    "find_sources",
    "labelled",
    "loader",
    "open_images",
    "pixel_statistics",
    "standardised",
]
