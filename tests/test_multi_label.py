"""Clips with several classes or none: reading, storing, training and testing, and what does not fit."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from clip_sets import annotations, npz_arrays, small, write_pickle
from tiny import config, settings, write_clips

from msg3d_fast import training
from msg3d_fast.checkpoint import load_file
from msg3d_fast.cli import main
from msg3d_fast.config import load_config
from msg3d_fast.data import open_dataset, write_store
from msg3d_fast.ensemble import ensemble
from msg3d_fast.errors import UserError
from msg3d_fast.evaluation import mean_average_precision
from msg3d_fast.experiment import open_clips

LABELS = [[0, 2], [1], [], (2,), {1, 2}, np.array([0])]
HOT = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    content = annotations()
    for clip, label in zip(content["annotations"], LABELS, strict=True):
        clip["label"] = label
    return write_pickle(tmp_path / "several.pkl", content)


def test_lists_of_labels_become_zeros_and_ones(path: Path, tmp_path: Path) -> None:
    clips = open_dataset(path)
    assert clips.multi_label
    assert clips.num_classes == 3
    assert clips.label.tolist() == HOT
    assert clips.subset("val").label.tolist() == HOT[3:]
    stored = open_dataset(write_store(clips, tmp_path / "store"))
    assert stored.label.tolist() == HOT
    assert stored.fingerprint() == clips.fingerprint(np.dtype(np.float16))
    changed = clips.label.copy()
    changed[0, 0] = 0
    assert clips.fingerprint() != type(clips)(**{**vars(clips), "label": changed}).fingerprint()
    np.savez(tmp_path / "a.npz", **npz_arrays(clips))
    assert open_dataset(tmp_path / "a.npz").label.tolist() == HOT


def test_one_class_number_among_lists_is_a_list_of_one(tmp_path: Path) -> None:
    content = annotations()
    for clip, label in zip(content["annotations"], [*LABELS[:5], 1], strict=True):
        clip["label"] = label
    assert open_dataset(write_pickle(tmp_path / "a.pkl", content)).label[5].tolist() == [0, 1, 0]


def test_the_network_may_have_more_classes_not_fewer(path: Path) -> None:
    settings = [f"--data.path={path}", "--model.num_classes"]
    clips = open_clips(load_config("custom", [settings[0], settings[1] + "=5"]))
    assert clips.label.tolist() == [[*row, 0, 0] for row in HOT]
    assert clips.num_classes == 5
    with pytest.raises(UserError, match=r"clip clip_0 has labels beyond the 2 classes .* \(3 such clips\)"):
        open_clips(load_config("custom", [settings[0], settings[1] + "=2"]))


@pytest.mark.parametrize("label", [np.full((12, 3), 2), np.zeros((12, 4), int), -np.ones((12, 3), int)])
def test_arrays_that_are_no_zeros_and_ones(tmp_path: Path, label: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", **npz_arrays(small()) | {"label": label})
    with pytest.raises(UserError, match=r"expected zeros and ones \(12, 3\)"):
        open_dataset(tmp_path / "a.npz")


@pytest.mark.parametrize("label", [[0, -1], [0, "walk"], [[0]], [1 << 30]])
def test_lists_that_are_no_class_numbers(tmp_path: Path, label: list) -> None:
    content = annotations()
    for clip in content["annotations"]:
        clip["label"] = [0, 1]
    content["annotations"][2]["label"] = label
    with pytest.raises(UserError, match="clip clip_2: label is"):
        open_dataset(write_pickle(tmp_path / "a.pkl", content))


def test_training_and_testing(tmp_path: Path) -> None:
    label = np.zeros((26, 4), np.uint8)
    label[np.arange(26), np.arange(26) % 4] = 1
    label[:, 3] |= label[:, 0]  # who is still is hasty too
    label[5] = 0
    path = write_clips(tmp_path / "clips.npz", label=label)
    folder = tmp_path / "run"
    arguments = ["--config", "custom", "--run-dir", str(folder)]
    assert main(["train", *arguments, *settings(path, "--test.checkpoint=best")]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"mAP", "mmit_mAP", "loss", "num_samples"} <= metrics.keys()
    assert 0 < metrics["mAP"] <= 1
    with np.load(folder / "scores.npz") as scores:
        assert (scores["labels"] == label[::3]).all()
        assert ((scores["scores"] > 0) & (scores["scores"] < 1)).all()
        assert mean_average_precision(scores["scores"], scores["labels"]) == pytest.approx(metrics["mAP"])
    rows = list(csv.DictReader((folder / "log.csv").open()))
    best = max(float(row["val_mAP"]) for row in rows)
    assert load_file(folder / "last.ckpt")["training"]["position"]["best"] == best
    assert not (folder / "confusion.png").exists()
    table = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [int(row["samples"]) for row in table] == label[::3].sum(0).tolist()
    fused = ensemble([folder, folder], tmp_path / "fused")
    assert fused["mAP"] == pytest.approx(metrics["mAP"])
    with pytest.raises(UserError, match="several labels"):
        training.train(config(path, "--train.loss=cross_entropy"), tmp_path / "other")
