"""What training minimises: softmax cross-entropy, binary cross-entropy over classes, or focal loss, per clip.

    cross_entropy   -sum_c w_c t_c log softmax(x)_c                       divided by the sum of w_c t_c over the batch
    bce             mean over c of w_c (softplus(x_c) - t_c x_c)          divided by the clips
    focal           w_y sum_c (1 - p_c)^gamma bce_c                       divided by the positive labels
                    p_c = sigmoid(x_c) where t_c = 1, else 1 - sigmoid(x_c)

with w = 1 or class weights and t = (1 - e) * labels + e / classes, e the label smoothing. Sources: mmaction2
`models/losses/cross_entropy_loss.py`, `models/heads/base.py`; Cui et al., "Class-balanced loss", CVPR 2019.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError

BETA = 0.9999  # of the effective number of samples (1 - beta^n) / (1 - beta)


class Loss:
    """The loss of every clip of a batch, and by how much a batch's sum of them is divided.

    Args:
        kind: "cross_entropy", "bce" or "focal"; "auto" is "bce" where clips may have several labels, else the first.
        num_classes: columns of the logits.
        several: whether labels are zeros and ones (N, classes) instead of class numbers (N,).
        label_smoothing: e.
        class_weights: float32 (classes,), or None.
        gamma: of "focal".

    Raises:
        UserError: a combination that has no meaning.
    """

    def __init__(
        self,
        kind: str,
        num_classes: int,
        *,
        several: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        gamma: float = 2.0,
    ) -> None:
        if kind == "auto":
            kind = "bce" if several else "cross_entropy"
        if kind == "cross_entropy" and several:
            raise UserError("train.loss is cross_entropy, but clips have several labels; set --train.loss=bce or focal")
        if kind == "focal" and label_smoothing:
            raise UserError("train.loss is focal, which has no label smoothing; set --train.label_smoothing=0")
        self.kind, self.num_classes, self.several = kind, num_classes, several
        self.smoothing, self.weights, self.gamma = label_smoothing, class_weights, gamma

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """float (N,) losses of logits (N, classes) against labels (N,) or (N, classes)."""
        if self.kind == "cross_entropy" and self.weights is None:
            return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
        weights = None if self.weights is None else self.weights.to(logits)
        if self.kind == "cross_entropy":
            return -(self._targets(labels, logits.dtype) * weights * logits.log_softmax(1)).sum(1)
        if self.kind == "bce":
            target = self._targets(labels, logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, target, weights, reduction="none").mean(1)
        target = self._hot(labels).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        losses = losses * torch.exp(-self.gamma * (target * logits + F.softplus(-logits)))
        return losses.sum(1) if weights is None else (target @ weights) * losses.sum(1)

    def divisor(self, labels: np.ndarray) -> float:
        """What the sum over a batch with these labels is divided by."""
        if self.kind == "bce" or (self.kind == "cross_entropy" and self.weights is None):
            return float(len(labels))
        given = torch.from_numpy(labels)
        if self.kind == "focal":
            return max(float(self._hot(given).sum()), 1.0)
        return float((self._targets(given, torch.float64) * self.weights).sum())

    def _hot(self, labels: Tensor) -> Tensor:
        return labels if self.several else F.one_hot(labels, self.num_classes)

    def _targets(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        hot = self._hot(labels).to(dtype)
        return hot if not self.smoothing else (1 - self.smoothing) * hot + self.smoothing / self.num_classes


def class_weights(choice: str | Sequence[float] | None, label: np.ndarray, num_classes: int) -> Tensor | None:
    """float32 (classes,) weights.

    Args:
        choice: "balanced", in inverse proportion to the clips of each class; "effective", to their effective number
            (1 - beta^n) / (1 - beta), scaled to a mean of 1; one number for each class; or None.
        label: (N,) or (N, classes) of the training clips.
        num_classes: classes.

    Raises:
        UserError: another word, or not one number of at least 0 for each class.
    """
    if choice is None:
        return None
    counts = label.sum(0, dtype=np.int64) if label.ndim == 2 else np.bincount(label, minlength=num_classes)
    counts = np.maximum(counts, 1)
    if choice == "balanced":
        weights = counts.sum() / (num_classes * counts)
    elif choice == "effective":
        weights = (1 - BETA) / (1 - BETA**counts)
        weights = weights / weights.sum() * num_classes
    elif isinstance(choice, str):
        raise UserError(f"train.class_weights is {choice!r}, expected balanced, effective or one number for each class")
    else:
        weights = np.asarray(choice, np.float64)
        if len(weights) != num_classes or not (weights >= 0).all() or not weights.any():
            raise UserError(
                f"train.class_weights has {len(weights)} numbers from {weights.min(initial=0):g}, expected "
                f"{num_classes}, one for each class and none below 0"
            )
    return torch.from_numpy(weights).float()
