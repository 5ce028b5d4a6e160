"""Metrics against upstream's numbers, and scores that do not depend on how they are computed."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest

from msg3d_fast import evaluation as E

GOLDEN = Path(os.environ.get("MSG3D_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "metrics_misc.npz", allow_pickle=False) as file:
        return dict(file)


def test_topk(golden: dict[str, np.ndarray]) -> None:
    scores, labels = golden["scores"], golden["labels"]
    assert E.topk_accuracy(scores, labels) == pytest.approx(list(golden["topk_1_5"]), abs=1e-12)
    assert E.topk_accuracy(scores, labels, (1, 2, 3)) == pytest.approx(list(golden["topk_1_2_3"]), abs=1e-12)


def test_mean_class_accuracy(golden: dict[str, np.ndarray]) -> None:
    assert E.mean_class_accuracy(golden["scores"], golden["labels"]) == pytest.approx(
        float(golden["mean_class"]), abs=1e-12
    )


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    assert E.mean_class_accuracy(scores, np.array([0, 0])) == 0.25


def test_confusion_matrix(golden: dict[str, np.ndarray]) -> None:
    predicted = golden["scores"].argmax(1)
    matrix = E.confusion_matrix(predicted, golden["labels"])
    assert (matrix == golden["confusion"]).all()
    assert E.confusion_matrix(np.array([0]), np.array([1]), 3).shape == (3, 3)


def test_mean_average_precision(golden: dict[str, np.ndarray]) -> None:
    scores, labels = golden["scores"], golden["multi_labels"]
    assert E.mean_average_precision(scores, labels) == pytest.approx(float(golden["mAP"]), rel=1e-12)
    assert E.mmit_mean_average_precision(scores, labels) == pytest.approx(float(golden["mmit_mAP"]), rel=1e-12)
    dropped = np.concatenate([labels, np.zeros((len(labels), 1))], axis=1)
    wider = np.concatenate([scores, np.ones((len(scores), 1))], axis=1)
    assert E.mean_average_precision(wider, dropped) == pytest.approx(float(golden["mAP"]), rel=1e-12)


@pytest.mark.parametrize(("average", "key"), [("prob", "clips_prob"), ("score", "clips_score")])
def test_average_clips(golden: dict[str, np.ndarray], average: str, key: str) -> None:
    clips = len(golden["clip_logits"]) // len(golden[key])
    np.testing.assert_allclose(
        E.average_clips(golden["clip_logits"], clips, average), golden[key], rtol=2e-6, atol=1e-7
    )


def test_batch_accuracy(golden: dict[str, np.ndarray]) -> None:
    top1, top5 = E.topk_accuracy(golden["clip_logits"], golden["ce_labels"])
    assert (top1, top5) == pytest.approx((float(golden["loss_top1"]), float(golden["loss_top5"])), abs=1e-12)


def test_per_class_table_and_worst_clips() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0], [0.6, 0.4, 0.0]])
    labels = np.array([0, 0, 1, 1])
    table = list(csv.DictReader(io.StringIO(E.per_class_table(scores, labels, ["sit", "stand"]))))
    assert [row["name"] for row in table] == ["sit", "stand", "2"]
    assert (table[0]["samples"], table[0]["correct"], table[0]["recall"], table[0]["precision"]) == (
        "2",
        "1",
        "0.5000",
        "0.5000",
    )
    assert (table[0]["mistaken_for"], table[0]["times"]) == ("stand", "1")
    assert (table[2]["samples"], table[2]["recall"], table[2]["mistaken_for"]) == ("0", "", "")
    worst = list(csv.DictReader(io.StringIO(E.worst_clips(list("abcd"), scores, labels, ["sit", "stand"], count=2))))
    assert [(row["id"], row["true"], row["predicted"]) for row in worst] == [
        ("b", "sit", "stand"),
        ("d", "stand", "sit"),
    ]
    assert (worst[0]["probability"], worst[0]["its_probability"]) == ("0.2000", "0.8000")
