"""The baselines against their definitions, and the table that sets the network beside them."""

from pathlib import Path

import numpy as np
import pytest

from msg3d_fast import baselines, cli, training


@pytest.fixture
def blobs() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y, y_test = rng.integers(0, 3, 60), rng.integers(0, 3, 40)
    centers = np.array([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]])
    return centers[y] + rng.normal(0, 1, (60, 3)), y, centers[y_test] + rng.normal(0, 1, (40, 3)), y_test


def test_nearest_neighbour_takes_the_nearest(blobs: tuple[np.ndarray, ...]) -> None:
    x, y, x_test, _ = blobs
    scores = baselines.nearest_neighbour(x, y, x_test, 4)
    nearest = [y[np.linalg.norm(x - row, axis=1).argmin()] for row in x_test]
    assert (scores.argmax(1) == nearest).all()
    assert np.isneginf(scores[:, 3]).all()  # no clip of that class


def test_linear_is_at_its_optimum(blobs: tuple[np.ndarray, ...]) -> None:
    x, y, x_test, y_test = blobs
    scores = baselines.linear(x, y, x_test, 3)
    assert (scores.argmax(1) == y_test).mean() > 0.9
    # At the optimum the mean probability of a class is its frequency: the bias is not penalised.
    fitted = baselines.linear(x, y, x, 3)
    probability = np.exp(fitted) / np.exp(fitted).sum(1, keepdims=True)
    np.testing.assert_allclose(probability.mean(0), np.bincount(y) / 60, atol=1e-3)


def test_chance_is_the_largest_training_class() -> None:
    scores = baselines.chance(np.array([2, 1, 1, 0]), 5, 4)
    assert scores.shape == (5, 4)
    assert (scores.argmax(1) == 1).all()
    assert scores[0].tolist() == [0.25, 0.5, 0.25, 0.0]


def test_quick_start_ends_in_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--model.base_channels=6", "--model.num_gcn_scales=2", "--model.num_g3d_scales=2", "--train.epochs=1"]
    command = ["quickstart", "--run-dir", str(tmp_path), *small, "--train.repeat=1", "--test.num_clips=1"]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(training.Trainer, "_step", lambda *_: pytest.fail("trained again"))
    assert cli.main(command) == 0
    second = capsys.readouterr().out
    table = second[second.index("434 clips to train on") :]
    assert table == first[first.index("434 clips to train on") :]
    top1 = {line[:30].strip(): float(line[30:38]) for line in table.splitlines()[3:9]}
    assert top1["linear, stream j"] > 0.9
    assert top1["nearest neighbour, stream j"] > 0.85
    assert top1["chance: largest class"] == pytest.approx(11 / 192, abs=5e-4)
    assert 0 <= top1["MS-G3D, stream b"] <= 1
    assert "same performers" in table
