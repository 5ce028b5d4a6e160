"""A data set and a network that train in a second: five joints in a chain, four classes told apart by how they move."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msg3d_fast.checkpoint import load_file
from msg3d_fast.cli import main
from msg3d_fast.config import Config, load_config

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = [
    "--model.base_channels=6",
    "--model.num_gcn_scales=3",
    "--model.num_g3d_scales=2",
    "--model.tcn_dropout=0.1",
    "--data.clip_len=8",
    "--data.augment.scale=0.1",
    "--train.epochs=3",
    "--train.repeat=2",
    "--train.batch_size=8",
    "--train.micro_batch=4",
    "--train.save_every=2",
    "--test.num_clips=3",
    "--device=cpu",
]


def write_clips(path: Path, number: int = 26, **changes: Any) -> Path:
    """A ragged .npz of `number` clips in splits `train` (about two thirds) and `val`; `changes` replace its arrays."""
    rng = np.random.default_rng(0)
    label, frames = np.arange(number) % 4, rng.integers(6, 12, number)
    joints = np.arange(5)[:, None] * [0.2, 1.0, 0.1]
    clips = []
    for y, T in zip(label, frames, strict=True):
        phase = np.sin(np.arange(T)[:, None] * (1 + y) / 2 + np.arange(5))
        clips.append(joints + phase[..., None] * [1.0, 0.2, -0.5] + rng.normal(0, 0.05, (T, 5, 3)))
    arrays = {
        "keypoints": np.concatenate(clips).astype(np.float32),
        "num_person": np.ones(number, np.int64),
        "total_frames": frames,
        "label": label,
        "frame_dir": np.array([f"clip{i:02d}" for i in range(number)]),
        "label_names": np.array(["still", "slow", "quick", "hasty"]),
        "joint_names": np.array(["foot", "knee", "hip", "neck", "head"]),
        "inward": np.array([[0, 1], [1, 2], [3, 2], [4, 3]]),
        "center": np.array([2]),
        "channels": np.array("xyz"),
        "split_train": np.arange(number) % 3 > 0,
        "split_val": np.arange(number) % 3 == 0,
    }
    np.savez(path, **{**arrays, **changes})
    return path


def settings(data: Path, *more: str) -> list[str]:
    """Overrides of the configuration `custom` for a small run on `data`."""
    return [*SETTINGS, f"--data.path={data}", *more]


def config(data: Path, *more: str) -> Config:
    """The configuration of a small run on `data`."""
    return load_config("custom", settings(data, *more))


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs the command line, which must end with status 2 and one line on stderr; returns that line."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("msg3d-fast: ")
    return lines[0]


def start(*argv: str, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "msg3d_fast", *argv]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def same_state(a: Any, b: Any) -> bool:
    """Whether nested containers hold the same, tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_state, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(one: Path, other: Path) -> None:
    """Two run folders hold the same weights, optimizer state and history, but for the time it took."""

    def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in history]

    a, b = (load_file(folder / "last.ckpt") for folder in (one, other))
    assert same_state(a["state_dict"], b["state_dict"])
    assert same_state(a["training"]["optimizer"], b["training"]["optimizer"])
    positions = [state["training"]["position"] for state in (a, b)]
    assert timeless(positions[0]["history"]) == timeless(positions[1]["history"])
    assert same_state(load_file(one / "best.ckpt")["state_dict"], load_file(other / "best.ckpt")["state_dict"])
