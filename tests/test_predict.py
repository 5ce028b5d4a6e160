"""Prediction on new poses: the scores of a test, timelines, streams, and the verb."""

import csv
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_sets import annotations, npz_arrays, small, write_pickle
from tiny import fails, settings

import msg3d_fast as m
from msg3d_fast import cli, preprocessing
from msg3d_fast.data import ClipSet, open_dataset, open_store
from msg3d_fast.data.store_writer import write_store
from msg3d_fast.errors import UserError
from msg3d_fast.evaluation import predict_scores, ready
from msg3d_fast.inference import FusedRecognizer
from msg3d_fast.predict import Segment


@pytest.fixture(scope="module")
def run(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = ["train", "--config", "custom", "--run-dir", str(folder), *settings(clips, "--train.epochs=1")]
    assert cli.main([*argv, "--train.repeat=1", "--data.stream=b"]) == 0
    return folder


def network(**changes: Any) -> m.Recognizer:
    """A small network of the coco skeleton with random weights and statistics, and what training would have told it."""
    torch.manual_seed(0)
    model = m.Recognizer("coco", num_classes=3, base_channels=6, num_gcn_scales=3, num_g3d_scales=2)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.nn.init.normal_(model.cls_head.fc.weight, std=0.01)
    told = preprocessing.Preprocessing(
        channels="xys", label_names=("sit", "stand", "wave"), clip_len=8, num_clips=2, normalize="box"
    )
    model.preprocessing = replace(told, **changes).plain()
    return model.eval()


def poses_of(clips: ClipSet) -> list[np.ndarray]:
    return [clips.clip(i) for i in range(len(clips))]


def test_a_run_predicts_what_its_test_scored(run: Path, clips: Path, tmp_path: Path) -> None:
    with np.load(run / "scores.npz") as file:
        tested = file["scores"]
    predictor = m.Predictor(run, batch_size=7)
    val = open_dataset(clips, "val")
    assert predictor.label_names == ("still", "slow", "quick", "hasty")
    scores = predictor(poses_of(val))
    assert (scores.astype(np.float32) == tested).all()
    assert (np.stack([predictor(pose) for pose in poses_of(val)]) == scores).all()
    assert predictor.top(scores[0], 2) == [(predictor.label_names[c], scores[0, c]) for c in np.argsort(-scores[0])[:2]]
    published = tmp_path / "published.safetensors"
    assert cli.main(["checkpoint", "convert", str(run / "last.ckpt"), str(published)]) == 0
    assert (m.Predictor(published)(poses_of(val)) == scores).all()
    model = m.load_checkpoint(run / "best.ckpt")
    assert model.preprocessing["stream"] == "b"
    assert m.load_checkpoint(run / "best.ckpt", num_classes=7).preprocessing is None
    assert (m.Predictor(run, stream="j")(val.clip(0)) != scores[0]).any()


@pytest.mark.usefixtures("emulated_backend")
def test_networks_are_folded_on_a_gpu_too(run: Path, clips: Path) -> None:
    """On the emulator; the second person of every clip is absent."""
    model = m.load_checkpoint(run / "best.ckpt", backend="emulated")
    net = ready(model)
    assert isinstance(net, FusedRecognizer)
    assert net.skip_absent
    val = poses_of(open_dataset(clips, "val"))[:2]
    expected = m.Predictor(run, backend="reference", num_clips=1)(val)
    np.testing.assert_allclose(m.Predictor(model, num_clips=1)(val), expected, rtol=1e-4)


def test_a_run_of_before_checkpoints_told(run: Path, clips: Path, tmp_path: Path) -> None:
    model = m.load_checkpoint(run / "last.ckpt")
    model.preprocessing = None
    old = tmp_path / "old"
    old.mkdir()
    m.save_checkpoint(model, old / "last.ckpt")
    for name in ("config.yaml", "scores.npz"):
        (old / name).write_bytes((run / name).read_bytes())
    poses = poses_of(open_dataset(clips, "val"))
    ours, theirs = m.Predictor(run), m.Predictor(old)
    assert theirs.label_names == ours.label_names
    assert (theirs(poses) == ours(poses)).all()


def test_poses_are_rounded_as_the_training_store_was(tmp_path: Path) -> None:
    clips = small(num_clips=4)
    write_store(clips, tmp_path / "store", "float16")
    store = open_store(tmp_path / "store")
    model = network(dtype="float16", semantics="mmaction2")
    predictor = m.Predictor(model)
    pipeline = predictor.preprocessing.pipeline(store, 2)
    expected, _ = predict_scores(model, pipeline, quiet=True)
    assert (predictor([pose.astype(np.float64) for pose in poses_of(clips)]) == expected).all()


@pytest.mark.parametrize(
    ("flavour", "source", "channels", "expected"),
    [
        ("mmaction2", "mmaction2", 3, ("xys", "2d", 100, 10, "float16")),
        ("pyskl", "pyskl", 3, ("xys", "2d", 100, 10, "float16")),
        ("original", "original", 3, ("xys", "none", 300, 1, "float32")),
        ("mmaction2", None, 2, ("xy", "auto", 100, 10, "float32")),
    ],
)
def test_what_is_assumed_of_an_upstream(flavour: str, source: str | None, channels: int, expected: tuple) -> None:
    model = m.Recognizer("openpose", 5, channels, base_channels=6, flavour=flavour)
    model.source = source
    found = preprocessing.of_model(model)
    assert (found.channels, found.normalize, found.clip_len, found.num_clips, found.dtype) == expected
    assert found.semantics == flavour
    assert found.label_names == ("0", "1", "2", "3", "4")


def test_an_upstreams_checkpoint_predicts_what_its_recipe_tests(tmp_path: Path) -> None:
    model = network()
    model.preprocessing = None
    m.save_checkpoint(model, tmp_path / "net.pth", format="mmaction2")
    content = annotations(4)
    write_pickle(tmp_path / "labelled.pkl", content)
    for clip in content["annotations"]:
        del clip["label"]
    write_pickle(tmp_path / "unlabelled.pkl", content["annotations"])
    short = ["--data.clip_len=8", "--test.num_clips=2"]
    sizes = ["--model.base_channels=6", "--model.num_gcn_scales=3", "--model.num_g3d_scales=2", "--model.num_classes=3"]
    checkpoint, run = ["--checkpoint", str(tmp_path / "net.pth")], ["--run-dir", str(tmp_path / "run")]
    data = [f"--data.path={tmp_path / 'labelled.pkl'}", "--data.test_split=null"]
    assert cli.main(["test", "--config", "ntu60_xsub_2d", *checkpoint, *run, *data, *sizes, *short]) == 0
    assert predict(tmp_path / "unlabelled.pkl", *checkpoint, "--out", tmp_path / "out.json", *short) == 0
    found = json.loads((tmp_path / "out.json").read_text())["clips"]
    with np.load(tmp_path / "run" / "scores.npz") as file:
        assert [clip["clip"] for clip in found] == file["ids"].tolist()
        for clip, scores in zip(found, file["scores"], strict=True):
            assert {one["label"]: np.float32(one["probability"]) for one in clip["top"]} == dict(enumerate(scores))


def test_image_size_is_asked_for_where_it_counts() -> None:
    predictor = m.Predictor(network(normalize="2d"))
    pose = small(num_clips=1).clip(0)
    with pytest.raises(UserError, match=r"does not say the size of the images.*--img-shape"):
        predictor(pose)
    assert (predictor(pose, img_shape=(480, 640)) != predictor(pose, img_shape=(1080, 1920))).any()
    usual = m.Predictor(network(normalize="2d", img_shape=(1080, 1920)))
    assert (usual(pose) == predictor(pose, img_shape=(1080, 1920))).all()
    for wrong in ((0, 640), (480,), 480, ("a", "b"), (float("nan"), 1)):
        with pytest.raises(UserError, match=r"img_shape is .* of clip 0, expected height and width in pixels"):
            predictor(pose, img_shape=wrong)


def test_missing_joints_are_cleaned_and_counted() -> None:
    predictor = m.Predictor(network())
    pose = small(num_clips=1).clip(0)
    holes, zeros = pose.copy(), pose.copy()
    holes[0, 1, 3, 0], holes[0, 2, 4] = np.nan, np.inf
    zeros[0, 1, 3], zeros[0, 2, 4] = 0, 0
    assert (predictor(holes) == predictor(zeros)).all()
    assert predictor.missing == 0
    predictor(holes)
    assert predictor.missing == 2
    assert np.isnan(holes).any()  # the caller's array is as it was


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 5, 18, 3), "18 joints \\(openpose.*coco with 17"),
        ((1, 5, 17, 2), "2 channels, this model was built for 3"),
        ((5, 17, 3), "shape \\(5, 17, 3\\), expected numbers \\(persons"),
        ((0, 5, 17, 3), "expected numbers"),
        ((1, 0, 17, 3), "no frames"),
    ],
)
def test_wrong_poses_are_one_line(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        m.Predictor(network())([np.ones(shape)])
    assert "\n" not in str(error.value)


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(UserError, match="unknown setting 'steam'"):
        m.Predictor(network(), steam="b")
    with pytest.raises(UserError, match="average is 'mean', expected one of prob, score"):
        m.Predictor(network(), average="mean")
    with pytest.raises(UserError, match="dtype is 'int8', expected one of float16"):
        m.Predictor(network(), dtype="int8")
    with pytest.raises(UserError, match="2 names for 3 classes"):
        m.Predictor(network(), label_names=("a", "b"))
    model = network()
    model.preprocessing = {"channels": "xys", "label_names": ["a", "b", "c"], "clip_len": "long"}
    with pytest.raises(UserError, match="preprocessing is damaged \\(clip_len"):
        m.Predictor(model)
    assert m.Predictor(network())([]).shape == (0, 3)


def test_timeline_joins_what_windows_agree_on(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = m.Predictor(network())
    seen = []

    def scores(clips: ClipSet) -> np.ndarray:
        """Class 1 as far as x is above 500, class 0 as far as it is not."""
        seen.extend((int(clips.num_person[i]), int(clips.total_frames[i])) for i in range(len(clips)))
        above = np.array([(clips.clip(i)[0, :, 0, 0] > 500).mean() for i in range(len(clips))])
        return np.stack([1 - above, above, 0 * above], 1)

    monkeypatch.setattr(predictor, "scores", scores)
    pose = np.ones((2, 22, 17, 3), np.float32)
    pose[0, 8:, :, 0] = 900
    pose[1] = 0  # nobody in the second slot: no window has it
    pose[0, 16:20] = 0
    found = predictor.timeline(pose, window=4, step=4)
    assert found == [Segment(0, 7, 0, "sit", 1.0), Segment(8, 15, 1, "stand", 1.0), Segment(18, 21, 0, "sit", 0.5)]
    assert set(seen) == {(1, 4)}
    # Windows of frames 0-7 and 4-11: the second is half and half.
    assert predictor.timeline(pose[:1, :12], window=8, step=4) == [Segment(0, 11, 0, "sit", 0.75)]
    assert predictor.timeline(pose[:1, :3], window=8, step=4) == [Segment(0, 2, 0, "sit", 1.0)]
    assert predictor.timeline(0 * pose, window=8, step=4) == []
    with pytest.raises(UserError, match="window is 0 frames"):
        predictor.timeline(pose, window=0, step=4)


def test_stream_sees_the_last_frames() -> None:
    predictor = m.Predictor(network(), num_clips=1)
    pose = small(num_clips=1, frames=(12, 12)).clip(0)
    pose = np.concatenate([pose, pose[:, ::-1]], 1)[:1]
    stream = m.Stream(predictor, window=8, step=3)
    answers = {t: found for t in range(24) if (found := stream.push(pose[:, t])) is not None}
    assert list(answers) == [7, 10, 13, 16, 19, 22]
    for t, found in answers.items():
        assert (found == predictor(pose[:, t - 7 : t + 1])).all()
    nobody = m.Stream(predictor, window=2)
    assert [nobody.push(np.zeros((0, 17, 3))) for _ in range(4)] == [None] * 4
    nobody.push(pose[:, 0])
    assert nobody.push(np.zeros((0, 17, 3))) is not None
    for wrong in (np.zeros((1, 18, 3)), np.full((1, 17, 3), "a")):
        with pytest.raises(UserError, match=r"array of shape .*, expected numbers \(persons, 17 joints, 3 channels\)"):
            stream.push(wrong)


def predict(*argv: Any) -> int:
    return cli.main(["predict", *map(str, argv)])


def test_verb_writes_what_the_test_scored(run: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert predict(clips, "--run-dir", run, "--out", out, "--top", "9") == 0
    found = json.loads(out.read_text())
    assert found["label_names"] == ["still", "slow", "quick", "hasty"]
    by_id = {entry["clip"]: {one["name"]: one["probability"] for one in entry["top"]} for entry in found["clips"]}
    with np.load(run / "scores.npz") as file:
        for name, scores in zip(file["ids"], file["scores"], strict=True):
            assert list(by_id[name].values()) == sorted(by_id[name].values(), reverse=True)
            assert [np.float32(by_id[name][label]) for label in found["label_names"]] == scores.tolist()
    assert predict(clips, "--checkpoint", run / "best.ckpt", "--window", "6", "--out", tmp_path / "out.csv") == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    frames = open_dataset(clips).total_frames
    assert rows[0].keys() == {"clip", "start", "end", "label", "name", "probability"}
    for i, total in enumerate(frames.tolist()):
        own = [row for row in rows if row["clip"] == f"clip{i:02d}"]
        assert (own[0]["start"], own[-1]["end"]) == ("0", str(total - 1))
        assert all(int(a["end"]) + 1 == int(b["start"]) for a, b in itertools.pairwise(own))
    assert not list(tmp_path.glob(".*"))


def test_verb_takes_poses_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m.save_checkpoint(network(), tmp_path / "net.ckpt")
    clips = small(num_clips=4)
    pose = np.array(clips.keypoint)
    pose[3, 2, 0] = np.nan
    np.savez(tmp_path / "poses.npz", **{**npz_arrays(clips), "keypoints": pose})
    (tmp_path / "names.txt").write_text("SIT\nSTAND\nWAVE\n")
    base = [tmp_path / "poses.npz", "--checkpoint", tmp_path / "net.ckpt"]
    capsys.readouterr()
    assert predict(*base, "--per-person", "--names", tmp_path / "names.txt", "--test.num_clips=1") == 0
    text = capsys.readouterr().out
    assert "1 joints held NaN or infinity" in text
    assert "1 clip of 8 frames" in text
    lines = [line.split() for line in text.splitlines() if line.startswith(str(clips.frame_dir[0]))]
    assert len(lines) == clips.num_person[0]
    assert lines[0][1] == "0"
    assert lines[0][3] in ("SIT", "STAND", "WAVE")
    assert predict(*base, "--config", "ntu60_xsub_2d", "--data.normalize=box") == 0
    assert "10 clips of 100 frames" in capsys.readouterr().out


def test_verb_says_what_is_wrong(run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = ["--run-dir", str(run)]
    (tmp_path / "names.txt").write_text("one\n")
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.csv")
    for argv, words in (
        (["absent.npz", *net], ["absent.npz"]),
        (["embedded", *net], ["25 joints", "trained on 5"]),
        ([str(clips)], ["--run-dir", "--checkpoint"]),
        ([str(clips), "--run-dir", str(tmp_path)], ["config.yaml"]),
        ([str(clips), "--checkpoint", str(tmp_path / "no.ckpt")], ["no.ckpt"]),
        ([str(clips), *net, "--step", "3"], ["--window"]),
        ([str(clips), *net, "--window", "0"], ["--window is 0"]),
        ([str(clips), *net, "--train.epochs=2"], ["--train.epochs does not apply"]),
        ([str(clips), *net, "--data.stream=joint"], ["data.stream", "jm"]),
        ([str(clips), *net, "--names", str(tmp_path / "names.txt")], ["names 1 classes, the network has 4"]),
        ([str(clips), *net, "--out", str(tmp_path / "a.txt")], [".json or .csv"]),
        ([str(clips), *net, "--out", str(tmp_path / "file" / "a.csv")], ["no folder"]),
        ([str(clips), *net, "--out", str(tmp_path / "pipe.csv")], ["no regular file"]),
        ([str(clips), *net, "--channels", "xys"], ["xys", "trained on xyz"]),
    ):
        line = fails(capsys, "predict", *argv)
        assert all(word in line for word in words), line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "names.txt", "pipe.csv"]
    assert (tmp_path / "pipe.csv").is_fifo()
