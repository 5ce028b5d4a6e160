"""Recipes against the published figures, and a reproduction from data to table."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import SETTINGS, fails, write_clips

from msg3d_fast import UserError, reproduce
from msg3d_fast.cli import main
from msg3d_fast.config import load_config
from msg3d_fast.data import open_dataset

# Top-1 of pyskl's configs/msg3d: joint, bone, joint motion, bone motion, two streams, four streams.
PYSKL = {
    "ntu60_xsub_3d": (89.6, 89.3, 87.7, 86.7, 91.0, 91.7),
    "ntu60_xsub_2d": (92.7, 92.8, 89.8, 90.2, 93.8, 94.1),
    "ntu60_xview_3d": (95.9, 95.0, 94.0, 92.4, 96.4, 96.9),
    "ntu60_xview_2d": (97.1, 97.1, 95.9, 95.1, 97.9, 98.3),
    "ntu120_xsub_3d": (84.0, 85.3, 82.2, 81.5, 86.9, 87.8),
    "ntu120_xsub_2d": (85.5, 85.0, 82.6, 82.9, 86.7, 87.4),
    "ntu120_xset_3d": (86.0, 87.3, 82.9, 83.2, 88.9, 89.6),
    "ntu120_xset_2d": (88.2, 88.9, 86.6, 86.5, 90.0, 90.9),
}


def test_recipes_stand_beside_the_published_figures() -> None:
    found = reproduce.recipes()
    for name, figures in PYSKL.items():
        assert tuple(found[name].published[key] for key in ("j", "b", "jm", "bm", "2s", "4s")) == figures
    for name, recipe in found.items():
        config = load_config(recipe.config, recipe.settings_for("bm", 3))
        assert (config.data.stream, config.seed) == ("bm", 3)
        assert recipe.clips.keys() == {"train", "test", "classes"}
        assert recipe.clips["classes"] == config.model.num_classes or config.model.num_classes is None
        assert config.data.train_split != config.data.test_split, name


def test_the_two_ntu_splits_hold_the_same_clips() -> None:
    found = reproduce.recipes()
    for one, other in (("ntu60_xsub_2d", "ntu60_xview_2d"), ("ntu120_xsub_3d", "ntu120_xset_3d")):
        sizes = [found[name].clips["train"] + found[name].clips["test"] for name in (one, other)]
        assert sizes[0] == sizes[1]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe `tiny` of one epoch, and the data set that it is for."""
    clips = write_clips(tmp_path / "clips.npz")
    settings = dict(item.lstrip("-").split("=") for item in SETTINGS)
    settings |= {"train.epochs": "1", "train.repeat": "1", "test.num_clips": "2"}
    entry = {
        "config": "custom",
        "settings": {key: yaml.safe_load(value) for key, value in settings.items()},
        "clips": {"train": 17, "test": 9, "classes": 4},
        "published": {"j": 91.5, "2s": "88-92"},
        "source": "nobody",
        "fingerprint": open_dataset(clips).fingerprint(np.dtype("float16")),
    }
    monkeypatch.setattr(reproduce, "RECIPES", tmp_path / "recipes.yaml")
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump({"tiny": entry}))
    return clips


def test_a_reproduction_from_data_to_table(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [
        "reproduce",
        "tiny",
        "--data",
        str(recipe),
        "--seeds",
        "3",
        "4",
        "--streams",
        "j",
        "b",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "reproduce.json").read_text())
    for key in ("j", "b", "2s"):
        by_seed = result["top1"][key]
        for seed in (3, 4):
            metrics = json.loads((out / f"seed{seed}" / key / "metrics.json").read_text())
            assert by_seed[str(seed)] == pytest.approx(100 * metrics["top1"], abs=0.005)
        assert result["mean"][key] == pytest.approx(np.mean(list(by_seed.values())), abs=0.01)
        assert result["spread"][key] == pytest.approx(np.std(list(by_seed.values()), ddof=1), abs=0.01)
    assert "4s" not in result["top1"]
    for seed in (3, 4):
        config = load_config(out / f"seed{seed}" / "b" / "config.yaml")
        assert (config.seed, config.data.stream, config.train.epochs) == (seed, "b", 1)
    row = next(line for line in printed.splitlines() if line.startswith("| joint |"))
    assert row == f"| joint | {result['mean']['j']:.2f} | {result['spread']['j']:.2f} | 2 | 91.5 |"
    assert "| 88-92 |" in printed
    assert "data checked by fingerprint" in printed
    trained = {path: path.stat().st_mtime_ns for path in out.glob("seed*/*/last.ckpt")}
    assert len(trained) == 4
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert json.loads((out / "reproduce.json").read_text()) == result


def test_other_data_are_refused_before_anything_is_trained(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = write_clips(tmp_path / "fewer.npz", number=20)
    command = ["reproduce", "tiny", "--out", str(tmp_path / "out")]
    line = fails(capsys, *command, "--data", str(fewer))
    assert "fewer.npz is not the data set of the recipe: 13 train, 7 test where the recipe has 17 train, 9 test" in line
    with np.load(recipe) as file:
        moved = write_clips(tmp_path / "moved.npz", keypoints=file["keypoints"] + 1)
    line = fails(capsys, *command, "--data", str(moved))
    assert "moved.npz is not the data set of the recipe: fingerprint" in line
    assert "--any-data" in line
    assert not (tmp_path / "out").exists()
    found = reproduce.reproduce("tiny", tmp_path / "out", data_path=moved, streams=["j"], any_data=True)
    assert "other data than the recipe's: fingerprint" in found["notes"][0]
    assert "spread" not in found or not found["spread"]
    assert "other data than the recipe's" in (tmp_path / "out" / "reproduce.md").read_text()


def test_changed_settings_are_said(tmp_path: Path, recipe: Path) -> None:
    found = reproduce.reproduce(
        "tiny", tmp_path / "out", data_path=recipe, streams=["j"], overrides=["model.base_channels=7"]
    )
    assert "with model.base_channels=7" in found["notes"]


def test_commands_it_stands_for(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "tiny", "--commands", "--seeds", "5", "--streams", "j", "b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["train", "train", "ensemble"]
    assert "--data.stream=b" in lines[1]
    assert "--seed=5" in lines[1]
    more = ["--out", "my runs", "--data", "my data.npz", "--train.lr=0.5", "--streams", "j"]
    assert main(["reproduce", "tiny", "--commands", *more]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("--run-dir") + 1] == "my runs/seed0/j"
    assert {"--data.path=my data.npz", "--train.lr=0.5"} <= set(words)
    assert "stream 'x': unknown" in fails(capsys, "reproduce", "tiny", "--commands", "--streams", "x")
    assert "'nope'" in fails(capsys, "reproduce", "tiny", "--commands", "--nope=1")


def test_what_cannot_be_reproduced(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'tiny'?" in fails(capsys, "reproduce", "tny")
    assert "no data given; add --data=FILE" in fails(capsys, "reproduce", "tiny")
    with pytest.raises(UserError, match="stream 'x': unknown; expected one of j, b, jm, bm"):
        reproduce.reproduce("tiny", tmp_path / "out", data_path=recipe, streams=["x"])
    with pytest.raises(UserError, match="no seeds or no streams"):
        reproduce.reproduce("tiny", tmp_path / "out", data_path=recipe, seeds=[])
