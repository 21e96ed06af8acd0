"""How good frozen features are: nearest neighbours and a linear classifier on top."""

import torch
from torch import Tensor

from crossmae.model import MaskedAutoencoder
from crossmae.training.data import LabelledImages


@torch.no_grad()
def features(model: MaskedAutoencoder, images: Tensor, batch_size: int = 256) -> Tensor:
    """Average over patch tokens of the encoder's output, ``(N, E)``; nothing is masked."""
    model.eval()
    return torch.cat([model.encode(batch)[:, 1:].mean(dim=1) for batch in images.split(batch_size)])


def knn_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, neighbours: int = 5) -> float:
    """Share of test features ``(M, E)`` that their nearest training features ``(N, E)`` by cosine classify right."""
    from sklearn.neighbors import KNeighborsClassifier

    scale, shift = torch.std_mean(train, dim=0)
    known, asked = (((x - shift) / (scale + 1e-6)).numpy() for x in (train, test))
    classifier = KNeighborsClassifier(neighbours, metric="cosine").fit(known, train_labels.numpy())
    return float(classifier.score(asked, test_labels.numpy()))


def linear_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Share of test features ``(M, E)`` that logistic regression on standardised training features classifies right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(train.numpy(), train_labels.numpy())
    return float(classifier.score(test.numpy(), test_labels.numpy()))


def evaluate(train: Tensor, test: Tensor, train_set: LabelledImages, test_set: LabelledImages) -> tuple[float, float]:
    """kNN and linear-probe accuracy of features of a training and a test set."""
    arguments = (train, train_set.labels, test, test_set.labels)
    return knn_accuracy(*arguments), linear_accuracy(*arguments)
