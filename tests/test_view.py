"""Animations of clips: what is drawn, what is written over it, and which clips there are."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from tiny import fails, write_clips

from msg3d_fast import visualize
from msg3d_fast.cli import main
from msg3d_fast.data import open_dataset
from msg3d_fast.view import view


def pictures(content: bytes) -> np.ndarray:
    """(T, height, width, 3)."""
    with Image.open(io.BytesIO(content)) as image:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])


def dark(picture: np.ndarray) -> np.ndarray:
    """Rows and columns of what is drawn, (number, 2)."""
    return np.argwhere(picture.sum(-1) < 600)


@pytest.mark.parametrize("upright", [False, True])
def test_joints_stand_where_they_are(upright: bool) -> None:
    poses = np.zeros((1, 3, 3, 2))
    poses[0, 0, :2] = [[1, 1], [1, 5]]  # a bone, then its lower end alone, then nobody
    poses[0, 1, 1] = [1, 5]
    drawn = [dark(one) for one in pictures(visualize.skeleton_animation(poses, [(0, 1), (1, 2)], upright=upright))]
    assert len(drawn) == 3
    assert np.ptp(drawn[0][:, 0]) > 400  # 480 pixels less margins, and a joint's radius at each end
    assert np.ptp(drawn[1][:, 0]) < 12
    assert len(drawn[2]) == 0
    middle = drawn[0][:, 0].mean()
    assert (drawn[1][:, 0].mean() < middle) == upright


def test_nobody_and_one_frame() -> None:
    assert pictures(visualize.skeleton_animation(np.zeros((2, 1, 5, 3)), [(0, 1)], ["empty"])).shape[0] == 1


def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clips(tmp_path / "clips.npz")
    scores = np.full((26, 4), 0.1)
    scores[:, 2] = 0.7
    ids, names = [f"clip{i:02d}" for i in range(26)], ["still", "slow", "quick", "hasty"]
    np.savez(tmp_path / "scores.npz", ids=ids[::-1], scores=scores, label_names=names)
    written = []
    draw = visualize.skeleton_animation
    monkeypatch.setattr(visualize, "skeleton_animation", lambda p, b, w, **k: written.append(w) or draw(p, b, w, **k))
    assert main(["view", str(path), "clip05", "clip07", "--run-dir", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert written == [
        ["clip05", "class: slow", "predicted: quick (70.0%)"],
        ["clip07", "class: hasty", "predicted: quick (70.0%)"],
    ]
    assert len(pictures((tmp_path / "clip07.gif").read_bytes())) == open_dataset(path).total_frames[7]
    assert "clip07.gif" in capsys.readouterr().out


@pytest.mark.parametrize("sign", [1, -1])
def test_heads_are_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    path = write_clips(tmp_path / "clips.npz")
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "keypoints": arrays["keypoints"] * [1, sign, 1]})
    told = []
    monkeypatch.setattr(visualize, "skeleton_animation", lambda *a, upright, **k: told.append(upright) or b"GIF")
    view(path, ["clip00"], tmp_path)
    assert told == [sign > 0]  # joint 0 is a foot and the last one the head, five times as high


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_clips(tmp_path / "clips.npz"))
    assert "did you mean 'clip23'" in fails(capsys, "view", path, "klip23")
    assert "look like 'clip00'" in fails(capsys, "view", path, "walk")
    assert "absent.npz" in fails(capsys, "view", str(tmp_path / "absent.npz"), "a")
    assert "no such folder" in fails(capsys, "view", path, "clip03", "--out", str(tmp_path / "absent"))
    for fps in ("500", "0.001", "nan"):
        assert "at least 0.01 and at most 50" in fails(capsys, "view", path, "clip03", "--fps", fps)
    np.savez(tmp_path / "scores.npz", ids=["other"], scores=np.ones((1, 4)) / 4)
    assert "has no clip 'clip03'" in fails(
        capsys, "view", path, "clip03", "--run-dir", str(tmp_path), "--out", str(tmp_path)
    )
    assert not list(tmp_path.glob("*.gif"))
