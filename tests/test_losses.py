"""Losses against upstream's numbers and against formulas written out in plain loops."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msg3d_fast.errors import UserError
from msg3d_fast.losses import Loss, class_weights

GOLDEN = Path(os.environ.get("MSG3D_GOLDEN", Path(__file__).parent / "golden"))
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0])
LABELS = torch.tensor([0, 1, 1, 3, 2])
HOT = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.uint8)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def mean(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    return float(loss(logits, labels).sum()) / loss.divisor(labels.numpy())


@pytest.mark.parametrize(("smoothing", "key"), [(0.0, "ce_loss"), (0.1, "ce_label_smooth_0.1")])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_upstreams(smoothing: float, key: str, weighted: bool) -> None:
    with np.load(GOLDEN / "metrics_misc.npz") as golden:
        logits, labels = torch.from_numpy(golden["clip_logits"]).double(), torch.from_numpy(golden["ce_labels"])
        expected = float(golden[key])
    classes = logits.shape[1]
    ones = torch.ones(classes) if weighted else None
    loss = Loss("auto", classes, label_smoothing=smoothing, class_weights=ones)
    assert mean(loss, logits, labels) == pytest.approx(expected, rel=1e-6)


def test_class_weights_are_torchs(logits: Tensor) -> None:
    expected = F.cross_entropy(logits, LABELS, WEIGHTS.double())
    assert mean(Loss("auto", 4, class_weights=WEIGHTS), logits, LABELS) == pytest.approx(float(expected), rel=1e-9)


def test_smoothed_and_weighted_is_upstreams_soft_label_loss(logits: Tensor) -> None:
    soft = 0.8 * F.one_hot(LABELS, 4).double() + 0.2 / 4
    total = -(soft * logits.log_softmax(1) * WEIGHTS).sum()
    expected = total / (soft * WEIGHTS).sum()
    loss = Loss("cross_entropy", 4, label_smoothing=0.2, class_weights=WEIGHTS)
    assert mean(loss, logits, LABELS) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_cross_entropy(logits: Tensor, weights: Tensor | None) -> None:
    given = None if weights is None else weights.double()
    for labels, target, several in ((HOT, HOT.double(), True), (LABELS, F.one_hot(LABELS, 4).double(), False)):
        expected = F.binary_cross_entropy_with_logits(logits, target, given)
        loss = Loss("auto" if several else "bce", 4, several=several, class_weights=weights)
        assert mean(loss, logits, labels) == pytest.approx(float(expected), rel=1e-9)
    smooth = Loss("bce", 4, several=True, label_smoothing=0.1)
    expected = F.binary_cross_entropy_with_logits(logits, 0.9 * HOT.double() + 0.025)
    assert mean(smooth, logits, HOT) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("several", [False, True])
def test_focal_loss_by_the_formula(logits: Tensor, weights: Tensor | None, several: bool) -> None:
    labels = HOT if several else LABELS
    hot = HOT.tolist() if several else F.one_hot(LABELS, 4).tolist()
    total = 0.0
    for row, target in zip(logits.tolist(), hot, strict=True):
        weight = 1.0 if weights is None else sum(t * w for t, w in zip(target, weights.tolist(), strict=True))
        for x, t in zip(row, target, strict=True):
            p = 1 / (1 + math.exp(-x))
            right = p if t else 1 - p
            total += weight * (1 - right) ** 2 * -math.log(right)
    loss = Loss("focal", 4, several=several, class_weights=weights)
    assert mean(loss, logits, labels) == pytest.approx(total / sum(map(sum, hot)), rel=1e-9)


def test_focal_loss_far_out() -> None:
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = Loss("focal", 2)(logits, torch.tensor([0]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(400)
    assert logits.grad.isfinite().all()


def test_weights_from_the_counts() -> None:
    label = np.repeat([0, 1, 2], [8, 2, 1])
    assert class_weights(None, label, 4) is None
    np.testing.assert_allclose(class_weights("balanced", label, 3), [11 / 24, 11 / 6, 11 / 3], rtol=1e-6)
    effective = np.array([(1 - 0.9999) / (1 - 0.9999**n) for n in (8, 2, 1)])
    np.testing.assert_allclose(class_weights("effective", label, 3), effective / effective.mean(), rtol=1e-6)
    assert class_weights("balanced", label, 4)[3] == 3  # a class without clips counts as one with one clip
    np.testing.assert_allclose(class_weights("balanced", HOT.numpy(), 4), [1, 1, 1, 1])
    assert class_weights([1, 0.5, 0], label, 3).tolist() == [1, 0.5, 0]


def test_what_has_no_meaning() -> None:
    label = np.zeros(3, int)
    for choice, words in (("even", "'even', expected balanced"), ([1.0], "1 numbers"), ([1, -1], "from -1")):
        with pytest.raises(UserError, match=words):
            class_weights(choice, label, 2)
    with pytest.raises(UserError, match="several labels"):
        Loss("cross_entropy", 3, several=True)
    with pytest.raises(UserError, match="no label smoothing"):
        Loss("focal", 3, label_smoothing=0.1)
