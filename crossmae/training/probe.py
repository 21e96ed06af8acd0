"""The quality of frozen features: nearest neighbours, and a linear classifier on top."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from crossmae.model import MaskedAutoencoder
from crossmae.training.data.batches import Batch


@dataclass(frozen=True)
class LabelledFeatures:
    """Features ``(N, E)``, float32, and labels ``(N,)``, int64, on the CPU."""

    values: Tensor
    labels: Tensor


def encoder_features(model: MaskedAutoencoder, batches: Iterable[Batch]) -> LabelledFeatures:
    """Average over patch tokens of the encoder's output, with nothing masked. Does not change the model's mode."""
    device, training = next(model.parameters()).device, model.training

    def average(images: Tensor) -> Tensor:
        return model.encode(model.normalized(images.to(device)))[:, 1:].mean(dim=1)

    model.eval()
    try:
        return _features(average, batches)
    finally:
        model.train(training)


def pixel_features(batches: Iterable[Batch]) -> LabelledFeatures:
    """Raw pixels as features, for comparison."""
    return _features(lambda images: images.flatten(1), batches)


@torch.no_grad()
def _features(feature: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> LabelledFeatures:
    parts = [(feature(batch.images).float().cpu(), batch.labels) for batch in batches]
    values, labels = zip(*parts, strict=True)
    return LabelledFeatures(torch.cat(values), torch.cat(labels))


def accuracies(train: LabelledFeatures, test: LabelledFeatures) -> dict[str, float]:
    """Share of test features classified correctly, by kNN and by a linear probe fitted to the training features."""
    return {"knn": knn_accuracy(train, test), "linear": linear_accuracy(train, test)}


def knn_accuracy(train: LabelledFeatures, test: LabelledFeatures, neighbours: int = 5) -> float:
    """By the majority of the nearest training features, by cosine after standardising each dimension."""
    from sklearn.neighbors import KNeighborsClassifier

    scale, shift = torch.std_mean(train.values, dim=0)
    known, asked = (((part.values - shift) / (scale + 1e-6)).numpy() for part in (train, test))
    classifier = KNeighborsClassifier(min(neighbours, len(known)), metric="cosine").fit(known, train.labels.numpy())
    return float(classifier.score(asked, test.labels.numpy()))


def linear_accuracy(train: LabelledFeatures, test: LabelledFeatures) -> float:
    """By logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(train.values.numpy(), train.labels.numpy())
    return float(classifier.score(test.values.numpy(), test.labels.numpy()))
