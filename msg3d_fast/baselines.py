"""What a split gives without a network: chance, nearest neighbour and a linear classifier on resampled poses.

Each baseline returns scores (N, classes) of the test clips, so that it is measured as the network is.
"""

import numpy as np
import torch
import torch.nn.functional as F

from .data import Pipeline


def pose_features(pipeline: Pipeline) -> np.ndarray:
    """Every clip as one row: its normalised poses at evenly spread frames, flattened; float64 (N, M * T * V * C)."""
    x, _ = pipeline.batch(np.arange(len(pipeline)), 0)
    return x.flatten(1).double().numpy()


def chance(train_labels: np.ndarray, number: int, num_classes: int) -> np.ndarray:
    """Class frequencies of the training clips for every one of `number` test clips: always the largest class."""
    frequency = np.bincount(train_labels, minlength=num_classes) / len(train_labels)
    return np.tile(frequency, (number, 1))


def nearest_neighbour(train_x: np.ndarray, train_labels: np.ndarray, x: np.ndarray, num_classes: int) -> np.ndarray:
    """Minus the Euclidean distance to the nearest training clip of each class."""
    distance = torch.cdist(torch.from_numpy(x), torch.from_numpy(train_x)).numpy()
    scores = np.full((len(x), num_classes), -np.inf)
    for label in np.unique(train_labels):
        scores[:, label] = -distance[:, train_labels == label].min(axis=1)
    return scores


def linear(train_x: np.ndarray, train_labels: np.ndarray, x: np.ndarray, num_classes: int) -> np.ndarray:
    """Multinomial logistic regression: least of sum of cross-entropy + |W|^2 / 2 over standardised features."""
    mean, scale = train_x.mean(axis=0), train_x.std(axis=0) + 1e-6
    features, labels = torch.from_numpy((train_x - mean) / scale), torch.from_numpy(train_labels)
    weight = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, labels, reduction="sum") + weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return ((x - mean) / scale) @ weight.detach().numpy().T + bias.detach().numpy()
