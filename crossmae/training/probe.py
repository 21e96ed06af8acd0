"""The quality of frozen features, by nearest neighbours and by a linear classifier."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from crossmae.model import MaskedAutoencoder
from crossmae.training.data.batches import Batch

ASKED = 1000  # queries per chunk of the neighbour search
Pooling = Literal["average", "class", "tokens"]


@dataclass(frozen=True)
class LabelledFeatures:
    """Features ``(N, E)``, float32, and labels ``(N,)``, int64, on the CPU."""

    values: Tensor
    labels: Tensor


def encoder_features(
    model: MaskedAutoencoder, batches: Iterable[Batch], pooling: Pooling = "average"
) -> LabelledFeatures:
    """The encoder's output without masking: the average of the patch tokens, the class token (the average of several),
    or all tokens ``(N, T, E)``.

    Does not change the model's mode. Raises ValueError if there is no class token to return.
    """
    device, training = next(model.parameters()).device, model.training
    first = model.config.class_tokens
    if pooling == "class" and not first:
        raise ValueError("pooling must be 'average' or 'tokens' for a model without class token, got 'class'")

    def pooled(images: Tensor) -> Tensor:
        tokens = model.encode(model.normalized(images.to(device)))
        if pooling == "average":
            return tokens[:, first:].mean(dim=1)
        return tokens[:, :first].mean(dim=1) if pooling == "class" else tokens

    model.eval()
    try:
        return _features(pooled, batches)
    finally:
        model.train(training)


def pixel_features(batches: Iterable[Batch]) -> LabelledFeatures:
    """Raw pixels as features, as a baseline."""
    return _features(lambda images: images.flatten(1), batches)


@torch.no_grad()
def _features(feature: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> LabelledFeatures:
    parts = [(feature(batch.images).float().cpu(), batch.labels) for batch in batches]
    values, labels = zip(*parts, strict=True)
    return LabelledFeatures(torch.cat(values), torch.cat(labels))


def accuracies(train: LabelledFeatures, test: LabelledFeatures) -> dict[str, float]:
    """Accuracy on the test features, of kNN and of a linear probe fitted to the training features."""
    return {"knn": knn_accuracy(train, test), "linear": linear_accuracy(train, test)}


def knn_accuracy(train: LabelledFeatures, test: LabelledFeatures, neighbours: int = 5) -> float:
    """Share of test features that ``knn_predictions`` classifies correctly."""
    return float((knn_predictions(train, test, neighbours) == test.labels).double().mean())


def knn_predictions(train: LabelledFeatures, test: LabelledFeatures, neighbours: int = 5) -> Tensor:
    """Majority label ``(N,)`` of the nearest training features, by cosine after standardising each dimension."""
    from sklearn.neighbors import KNeighborsClassifier

    scale, shift = torch.std_mean(train.values, dim=0)
    known, asked = (((part.values - shift) / (scale + 1e-6)).numpy() for part in (train, test))
    classifier = KNeighborsClassifier(min(neighbours, len(known)), metric="cosine").fit(known, train.labels.numpy())
    parts = [asked[first : first + ASKED] for first in range(0, len(asked), ASKED)]
    line = tqdm(parts, desc="nearest neighbours", disable=len(parts) < 10)
    return torch.cat([torch.from_numpy(classifier.predict(part)) for part in line])


def linear_accuracy(train: LabelledFeatures, test: LabelledFeatures) -> float:
    """Accuracy of logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(train.values.numpy(), train.labels.numpy())
    return float(classifier.score(test.values.numpy(), test.labels.numpy()))
