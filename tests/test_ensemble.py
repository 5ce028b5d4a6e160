"""Scores of ours and of every upstream, joined by id, weighted and added."""

import csv
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import fails, write_clips

from msg3d_fast import UserError
from msg3d_fast.cli import main
from msg3d_fast.data.npz import read_npz
from msg3d_fast.ensemble import default_weights, ensemble, search_weights
from msg3d_fast.score_files import Scores, read_scores

GOLDEN = Path(os.environ.get("MSG3D_GOLDEN", Path(__file__).parent / "golden"))
NAMES = ["still", "slow", "quick", "hasty"]


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def samples(number: int = 12, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, logits that lean to the labels, and labels."""
    labels = np.arange(number) % 4
    logits = np.random.default_rng(seed).normal(0, noise, (number, 4)) + 2 * np.eye(4)[labels]
    return np.array([f"clip{i:02d}" for i in range(number)]), logits, labels


def write(path: Path, ids: np.ndarray, logits: np.ndarray, labels: np.ndarray, stream: str = "") -> Path:
    np.savez(path, ids=ids, scores=softmax(logits), labels=labels, label_names=np.array(NAMES), stream=np.array(stream))
    return path


def dump(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_members_are_joined_by_id_whatever_their_order(tmp_path: Path) -> None:
    ids, logits, labels = samples()
    _, other, _ = samples(seed=1)
    mixed = np.random.default_rng(2).permutation(len(ids))
    write(tmp_path / "j.npz", ids, logits, labels)
    write(tmp_path / "b.npz", ids[mixed], other[mixed], labels[mixed])
    metrics = ensemble([tmp_path / "j.npz", tmp_path / "b.npz"], tmp_path / "out", weights=[3, 1])
    fused = read_scores(tmp_path / "out")
    expected = (3 * softmax(logits) + softmax(other)) / 4
    np.testing.assert_allclose(fused.scores, expected, atol=1e-6)
    assert fused.ids.tolist() == ids.tolist()
    assert fused.label_names == tuple(NAMES)
    assert metrics["top1"] == (expected.argmax(1) == labels).mean()
    assert [one["weight"] for one in metrics["members"]] == [3, 1]
    assert metrics["members"][1]["top1"] == (other.argmax(1) == labels).mean()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".lock",
        "confusion.png",
        "metrics.json",
        "per_class.csv",
        "scores.npz",
        "worst_clips.csv",
    }


def test_weights_of_the_golden_file(tmp_path: Path) -> None:
    with np.load(GOLDEN / "metrics_misc.npz", allow_pickle=False) as golden:
        streams, two, four = golden["streams"], golden["weighted_1_1"], golden["weighted_2_2_1_1"]
    ids = np.array([str(i) for i in range(len(streams[0]))])
    for i, scores in enumerate(streams):
        np.savez(tmp_path / f"{i}.npz", ids=ids, scores=scores, labels=np.zeros(len(ids), int))
    probabilities = [read_scores(tmp_path / f"{i}.npz").probabilities for i in range(4)]
    given = all(np.array_equal(one, scores) for one, scores in zip(probabilities, streams, strict=True))
    ensemble([tmp_path / f"{i}.npz" for i in range(4)], tmp_path / "four", average="prob")
    ensemble([tmp_path / f"{i}.npz" for i in range(2)], tmp_path / "two", average="prob")
    for name, expected, total in (("two", two, 2), ("four", four, 6)):
        found = read_scores(tmp_path / name).scores
        if given:  # upstream's sum is not divided by the weights
            np.testing.assert_allclose(found, expected / total, rtol=1e-5, atol=1e-7)
        assert (found.argmax(1) == expected.argmax(1)).mean() > (0.999 if given else 0.5)


def test_four_streams_are_weighted_by_what_they_are() -> None:
    def members(*streams: str) -> list[Scores]:
        return [Scores(name=stream, scores=np.ones((1, 2)), stream=stream) for stream in streams]

    assert default_weights(members("jm", "b", "bm", "j")) == [1, 2, 1, 2]
    assert default_weights(members("", "", "", "")) == [2, 2, 1, 1]
    assert default_weights(members("j", "j", "j", "j")) == [1, 1, 1, 1]
    assert default_weights(members("j", "b")) == [1, 1]


@pytest.mark.parametrize("average", ["prob", "score"])
def test_upstreams_files_agree_with_ours(tmp_path: Path, average: str) -> None:
    """The same scores as MMAction2's dump, pyskl's list and the authors' dict give the same fusion."""
    data = write_clips(tmp_path / "clips.npz", number=36)
    clips = read_npz(data).subset("val")
    ids, labels = clips.frame_dir, clips.label
    rng = np.random.default_rng(3)
    one, two = (rng.normal(0, 1, (len(ids), 4)).astype(np.float32) for _ in range(2))
    mmaction = [
        {"pred_score": torch.tensor(row), "gt_label": torch.tensor([y]), "pred_label": torch.tensor([0]), "num": (1, 2)}
        for row, y in zip(softmax(one), labels, strict=True)
    ]
    older = [{"pred_scores": {"item": d["pred_score"]}, "gt_labels": {"item": d["gt_label"]}} for d in mmaction]
    files = {
        "mmaction2": dump(tmp_path / "mm.pkl", mmaction),
        "with_ids": dump(
            tmp_path / "ids.pkl", [d | {"frame_dir": i} for d, i in zip(mmaction, ids, strict=True)][::-1]
        ),
        "older": dump(tmp_path / "older.pkl", older),
        "pyskl": dump(tmp_path / "pyskl.pkl", list(softmax(one)), protocol=4),
        "original": dump(tmp_path / "original.pkl", dict(zip(ids.tolist(), one, strict=True)), protocol=4),
    }
    other = dump(tmp_path / "b.pkl", dict(zip(ids.tolist(), two, strict=True)))
    found = {}
    for name, path in files.items():
        metrics = ensemble([path, other], tmp_path / name, average=average, data_path=data, split="val")
        assert metrics["num_samples"] == len(ids)
        scores = read_scores(tmp_path / name)
        found[name] = dict(zip(scores.ids.tolist(), scores.scores, strict=True))
    mean = (softmax(one) + softmax(two)) / 2 if average == "prob" else softmax((one + two) / 2)
    for name, scores in found.items():
        np.testing.assert_allclose([scores[i] for i in ids], mean, atol=1e-6, err_msg=name)


def test_weights_are_searched_on_other_samples_than_they_are_reported_on(tmp_path: Path) -> None:
    ids, good, labels = samples(200, noise=1.0)
    noise = np.random.default_rng(5).normal(0, 1, good.shape)
    for name, part in (("val", slice(0, 100)), ("test", slice(100, 200))):
        write(tmp_path / f"good_{name}.npz", ids[part], good[part], labels[part])
        write(tmp_path / f"noise_{name}.npz", ids[part], noise[part], labels[part])
    test, val = ([tmp_path / f"{kind}_{name}.npz" for kind in ("good", "noise")] for name in ("test", "val"))
    metrics = ensemble(test, tmp_path / "out", tune=val)
    weights = [one["weight"] for one in metrics["members"]]
    assert weights[0] > weights[1]
    assert sum(weights) == pytest.approx(1)
    assert metrics["tuned_on"] == 100
    assert metrics["tuned_on_reported"] == 0
    assert metrics["top1"] >= ensemble(test, tmp_path / "equal")["top1"]
    assert ensemble(test, tmp_path / "same", tune=test)["tuned_on_reported"] == 100


def test_search_of_many_members_finds_the_only_good_one() -> None:
    _, logits, labels = samples(80)
    rng = np.random.default_rng(6)
    members = [Scores(name=str(i), scores=softmax(rng.normal(0, 1, logits.shape)), labels=labels) for i in range(4)]
    members.insert(2, Scores(name="good", scores=softmax(3 * logits), labels=labels))
    weights = search_weights(members)
    assert int(np.argmax(weights)) == 2
    assert sum(weights) == pytest.approx(1)


def drop_two(ids: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple:
    return ids[2:], logits[2:], labels[2:]


def rename(ids: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple:
    return np.array(["strange", *ids[1:]]), logits, labels


def relabel(ids: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple:
    return ids, logits, np.r_[labels[:-1], 0]


def repeat(ids: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple:
    return np.array([ids[1], *ids[1:]]), logits, labels


def narrow(ids: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple:
    return ids, logits[:, :3], labels


def spoil(ids: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple:
    logits = logits.copy()
    logits[4, 1] = np.nan
    return ids, logits, labels


def several(ids: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple:
    return ids, logits, np.eye(4, dtype=int)[labels]


def pairs(ids: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> tuple:
    return ids, logits, np.stack([labels, labels], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_two, "b.npz: 10 samples, .*j.npz has 12: it lacks clip00, clip01; test all on the same split"),
        (rename, "it lacks clip00 and alone has strange"),
        (relabel, "b.npz: clip11 has label 0, in .*j.npz it has 3"),
        (repeat, "1 ids occur more than once, the first is clip01"),
        (narrow, "b.npz: scores 3 classes, .*j.npz 4"),
        (spoil, "the scores of sample clip04 are not finite"),
        (several, "b.npz: its samples have several labels each, those of .*j.npz one label"),
        (pairs, r"b.npz: labels have the shape \(12, 2\), expected \(12,\), or \(12, 4\)"),
    ],
)
def test_sets_that_differ_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable, message: str
) -> None:
    write(tmp_path / "j.npz", *samples())
    write(tmp_path / "b.npz", *change(*samples(seed=1)))
    line = fails(capsys, "ensemble", str(tmp_path / "j.npz"), str(tmp_path / "b.npz"), "--out", str(tmp_path / "out"))
    with pytest.raises(UserError, match=message):
        ensemble([tmp_path / "j.npz", tmp_path / "b.npz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "b.npz" in line


def test_files_without_ids_need_their_data_set(tmp_path: Path) -> None:
    data = write_clips(tmp_path / "clips.npz", number=36)
    clips = read_npz(data).subset("val")
    rows = [np.full(4, 0.25) for _ in clips.frame_dir]
    files = [dump(tmp_path / f"{name}.pkl", rows) for name in "ab"]
    with pytest.raises(UserError, match=r"a.pkl: holds no ids.*add --data=FILE and --split=NAME"):
        ensemble(files, tmp_path / "out")
    with pytest.raises(UserError, match=r"12 samples without ids, .*clips.npz, split train has 24"):
        ensemble(files, tmp_path / "out", data_path=data, split="train")
    wrong = [{"pred_score": torch.ones(4) / 4, "gt_label": torch.tensor([(y + 1) % 4])} for y in clips.label]
    with pytest.raises(UserError, match=r"sample 0 has label 1, in .* it is clip00 with label 0"):
        ensemble([dump(tmp_path / "w.pkl", wrong), files[0]], tmp_path / "out", data_path=data, split="val")
    named = [dump(tmp_path / f"{name}.pkl", dict(zip(clips.frame_dir.tolist(), rows, strict=True))) for name in "cd"]
    with pytest.raises(UserError, match="neither it nor the others hold labels"):
        ensemble(named, tmp_path / "out")


class Smuggler:
    def __reduce__(self) -> tuple:
        return os.system, ("touch smuggled",)


def test_nothing_in_a_score_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inner = pickle.dumps(Smuggler())  # where a tensor's storage should be

    class Storage:
        def __reduce__(self) -> tuple:
            return torch.storage._load_from_bytes, (inner,)

    for content in ([Smuggler()], [{"pred_score": Storage()}]):
        with pytest.raises(UserError, match=r"s.pkl"):
            read_scores(dump(tmp_path / "s.pkl", content))
        assert not (tmp_path / "smuggled").exists()


def test_a_tensor_that_reaches_beyond_its_storage(tmp_path: Path) -> None:
    path = dump(tmp_path / "s.pkl", [{"pred_score": torch.arange(4.0)}])
    assert read_scores(path).scores.tolist() == [[0, 1, 2, 3]]
    offset_and_size = b"K\x00K\x04\x85"  # pickle's 0, 4 and a tuple of one
    content = path.read_bytes()
    assert content.count(offset_and_size) == 1
    path.write_bytes(content.replace(offset_and_size, b"K\x00K\x09\x85"))
    with pytest.raises(UserError, match="reaches to 8 of 4"):
        read_scores(path)


BAD_FILES = {
    "absent": (lambda path: None, "cannot be read"),
    "text": (lambda path: path.write_text("id,score\n"), "starts with b'id,s', expected"),
    "no_scores": (lambda path: np.savez(path, ids=np.array(["a"])), "has no scores"),
    "broken": (lambda path: path.write_bytes(b"PK\3\4 and no more"), "not a whole .npz"),
    "number": (lambda path: dump(path, 3), "holds a int, expected MMAction2's"),
    "no_pred_score": (lambda path: dump(path, [{"feature": 1}]), "have no pred_score"),
    "uneven": (lambda path: dump(path, [np.ones(3), np.ones(4)]), "3 and 4 numbers"),
    "words": (lambda path: dump(path, {"a": "x"}), "expected one per class"),
    "empty_zip": (lambda path: zipfile.ZipFile(path, "w").close(), "has no ids"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_hold_no_scores(tmp_path: Path, name: str) -> None:
    make, message = BAD_FILES[name]
    path = tmp_path / "s.npz"
    make(path)
    with pytest.raises(UserError, match=message) as error:
        read_scores(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_weights(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.npz", *samples()) for name in "jb"]
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(UserError, match="for 2 files; expected one of 0 or more for each"):
            ensemble(files, tmp_path / "out", weights=weights)
    with pytest.raises(UserError, match="1 score file, expected two"):
        ensemble(files[:1], tmp_path / "out")
    with pytest.raises(UserError, match="leave out one"):
        ensemble(files, tmp_path / "out", weights=[1, 1], tune=files)
    with pytest.raises(UserError, match="--split val is a part of a data set; give --data"):
        ensemble(files, tmp_path / "out", split="val")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another with --out"):
        ensemble(files, tmp_path / "file")
    with pytest.raises(UserError, match="1 files to tune on for 2 members"):
        ensemble(files, tmp_path / "out", tune=files[:1])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stream, seed in (("j", 0), ("b", 1), ("jm", 2), ("bm", 3)):
        (tmp_path / stream).mkdir()
        write(tmp_path / stream / "scores.npz", *samples(seed=seed), stream=stream)
    folders = [str(tmp_path / stream) for stream in ("bm", "j", "b", "jm")]
    assert main(["ensemble", *folders, "--out", str(tmp_path / "four")]) == 0
    out = capsys.readouterr().out
    assert "weight 1" in out.splitlines()[0]
    assert "weight 2" in out.splitlines()[1]
    assert "fusion: 12 samples, top-1" in out
    with (tmp_path / "four" / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == NAMES
    assert sum(int(row["samples"]) for row in table) == 12
    with (tmp_path / "four" / "worst_clips.csv").open() as file:
        worst = list(csv.DictReader(file))
    assert len(worst) == 12
    assert [float(row["probability"]) for row in worst] == sorted(float(row["probability"]) for row in worst)
