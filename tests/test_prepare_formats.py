"""Every format that `prepare` reads: its clips, their classes and protocols, and how a format is told."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import raw_files
from clip_sets import write_pickle

from msg3d_fast.data import open_dataset, prepare
from msg3d_fast.data.original import pre_normalization
from msg3d_fast.data.pipeline import Pipeline
from msg3d_fast.data.readers import ntu
from msg3d_fast.data.readers.job import Bad
from msg3d_fast.data.readers.pickled import decompress
from msg3d_fast.data.unpickle import Array, Deferred, load_plain
from msg3d_fast.errors import UserError
from msg3d_fast.graph import get_layout

GOLDEN = Path(os.environ.get("MSG3D_GOLDEN") or Path(__file__).parent / "golden") / "ntu_raw.npz"

# Classes in the order of the clips' ids, and clips in each split.
EXPECTED = {
    "ntu": ([0, 59, 6, 8], {"xsub_train": 2, "xsub_val": 2, "xview_train": 2, "xview_val": 2}, "nturgb+d", "xyz"),
    "kinetics": ([0, 1, 2, 0, 1, 2], {"train": 3, "val": 3}, "openpose", "xys"),
    "authors": ([0, 1, 2, 0, 1], {"train": 3, "val": 2}, "nturgb+d", "xyz"),
    "nw_ucla": ([0, 4, 6, 9], {"xview_train": 2, "xview_test": 2}, "kinect20", "xyz"),
    "utd_mhad": ([0, 26, 2], {"xsub_train": 1, "xsub_test": 2}, "kinect20", "xyz"),
    "msr_action3d": ([0, 12, 19], {"xsub_train": 1, "xsub_test": 2}, "kinect20", "xyz"),
    "utkinect": ([5, 0, 5, 0], {"xsub_train": 2, "xsub_test": 2}, "kinect20", "xyz"),
    "openpose": ([0, 1, 1], {"train": 2, "val": 1}, "openpose25", "xys"),
    "coco": ([0, 0, 1], {"train": 1, "val": 2}, "coco", "xys"),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("name", raw_files.WRITERS)
def test_a_format_is_told_and_read(tmp_path: Path, name: str, zipped: bool) -> None:
    poses = raw_files.WRITERS[name](tmp_path / "raw")
    source = raw_files.zipped(tmp_path / "raw", tmp_path / "raw.zip") if zipped else tmp_path / "raw"
    if zipped and name == "authors":
        with pytest.raises(UserError, match="in a zip, where they cannot be mapped into memory; unpack it"):
            prepare(source, tmp_path / "s")
        return
    clips = prepare(source, tmp_path / "s", dtype="float32")
    assert sorted(clips.frame_dir.tolist()) == sorted(poses)
    for i, one in enumerate(clips.frame_dir.tolist()):
        np.testing.assert_allclose(clips.clip(i), poses[one], rtol=1e-6, atol=1e-6)
    labels, splits, layout, channels = EXPECTED[name]
    assert clips.label[np.argsort(clips.frame_dir)].tolist() == labels
    assert {split: int(mask.sum()) for split, mask in clips.splits.items()} == splits
    assert (clips.layout.name, clips.channels) == (layout, channels)
    assert (tmp_path / "s" / "skipped.txt").read_text() == ""
    half = prepare(source, tmp_path / "h", format=name)
    assert half.fingerprint() == clips.fingerprint(np.dtype("float16"))


def golden_cases() -> list[str]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return sorted({name.split("/")[0] for name in arrays.files if name.endswith("/text")})


@pytest.mark.parametrize("case", golden_cases())
def test_golden_ntu(tmp_path: Path, case: str) -> None:
    """The three upstream converters, bit for bit; the authors' slots are those of mmaction2, filled with zeros."""
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        found = {
            key: arrays[f"{case}/{key}"] for key in ("text", "mma2_keypoint_f16", "orig_xyz_CTVM", "pyskl_keypoint_f16")
        }
    raw_files.write(tmp_path / "raw/S001C001P001R001A001.skeleton", found["text"].tobytes())
    for semantics in ("mmaction2", "pyskl"):
        clips = prepare(tmp_path / "raw", tmp_path / semantics, semantics=semantics)
        key = f"{'mma2' if semantics == 'mmaction2' else semantics}_keypoint_f16"
        np.testing.assert_array_equal(clips.clip(0), found[key])
    clips = prepare(tmp_path / "raw", tmp_path / "o", semantics="original", dtype="float32")
    authors = found["orig_xyz_CTVM"].transpose(3, 1, 2, 0)
    np.testing.assert_array_equal(clips.clip(0), authors[: len(clips.clip(0))])
    assert not authors[len(clips.clip(0)) :].any()

    dense = np.zeros((1, 3, 300, 25, 2), np.float32)
    dense[0, :, : authors.shape[1]] = found["orig_xyz_CTVM"]
    batch, _ = Pipeline(clips, semantics="original", clip_len=300, test_mode=True).batch(np.array([0]))
    np.testing.assert_allclose(batch[0, 0].permute(3, 1, 2, 0).numpy(), pre_normalization(dense)[0], atol=2e-6)


def test_ntu_60_of_120_and_all_protocols(tmp_path: Path) -> None:
    names = [
        f"S{s:03d}C{c:03d}P{p:03d}R001A{a:03d}"
        for s, c, p, a in ((1, 1, 1, 1), (17, 3, 7, 60), (18, 1, 45, 61), (31, 2, 106, 120))
    ]
    raw_files.ntu(tmp_path / "raw", names, frames=3)
    whole = prepare(tmp_path / "raw", tmp_path / "120")
    assert whole.num_classes == 120
    assert {name: mask.tolist() for name, mask in whole.splits.items()} == {
        "xsub_train": [True, False, True, False],
        "xsub_val": [False, True, False, True],
        "xset_train": [False, False, True, False],
        "xset_val": [True, True, False, True],
    }
    part = prepare(tmp_path / "raw", tmp_path / "60", format="ntu60")
    assert (part.num_classes, part.frame_dir.tolist()) == (60, names[:2])
    assert part.splits["xview_train"].tolist() == [False, True]
    assert ntu.SUBJECTS & set(range(1, 41)) == {
        1,
        2,
        4,
        5,
        8,
        9,
        13,
        14,
        15,
        16,
        17,
        18,
        19,
        25,
        27,
        28,
        31,
        34,
        35,
        38,
    }
    assert len(ntu.SUBJECTS) == 53


@pytest.mark.parametrize("header", ["", "The following 302 skeletons are missing\nfrom the data set:\n\n"])
def test_the_list_of_missing_skeletons(tmp_path: Path, header: str) -> None:
    poses = raw_files.ntu(tmp_path / "raw")
    gone = sorted(poses)[1]
    others = [f"S016C003P{i // 60 + 41:03d}R002A{i % 60 + 1:03d}" for i in range(301)]
    raw_files.write(tmp_path / "list.txt", header + "\n".join([*others, f"{gone}.skeleton", ""]))
    clips = prepare(tmp_path / "raw", tmp_path / "s", missing=tmp_path / "list.txt")
    assert clips.frame_dir.tolist() == sorted(poses.keys() - {gone})
    assert clips.notes[0] == "1 files left out by the list of 302 missing skeletons (NTU RGB+D 60)"
    assert "counts differ from the published ones: clips 3 (published 56578)" in clips.notes[1]
    with pytest.raises(UserError, match="names no clip such as S001"):
        prepare(tmp_path / "raw", tmp_path / "t", missing=raw_files.write(tmp_path / "empty.txt", "nothing\n"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace(b"\n25\r", b"\n24\r", 1), "says 24 joints, expected 25"),
        (lambda t: t[: len(t) // 2], "cut off|another number of values"),
        (lambda t: b"", "the number of frames is ''"),
        (lambda t: b"0\r\n", "nobody is in any"),
        (lambda t: t + t, "its 13 frames end at line"),
        (lambda t: t.replace(b" 280.1 ", b"x 280.1 ", 1), "something else than numbers"),
        (lambda t: t.replace(b" 280.1 190.2", b" 280.1-190.2", 1), "another number of values than 12"),
        (lambda t: t.replace(b" 280.1 190.2", b"-1 280.1 190.2", 1), "something else than numbers"),
        (lambda t: t.replace(b"13\r\n", b"99999999\r\n", 1), "expected at most"),
        (lambda t: t.replace(b"13\r\n", b"-1\r\n", 1), "expected a count"),
        (lambda t: t.replace(b" 0 1 0 1 0 0", b" 0 1 0 1 0", 1), "does not begin a body"),
    ],
)
def test_ntu_files_that_are_damaged(tmp_path: Path, change: object, said: str) -> None:
    raw_files.ntu(tmp_path / "raw")
    path = tmp_path / "raw/nturgb+d_skeletons/S001C001P001R001A001.skeleton"
    with pytest.raises(Bad, match=said):
        ntu.parse(change(path.read_bytes()))
    path.write_bytes(change(path.read_bytes()))
    clips = prepare(tmp_path / "raw", tmp_path / "s")
    assert len(clips) == 3
    assert clips.notes[0].startswith("skipped nturgb+d_skeletons/S001C001P001R001A001.skeleton: ")
    assert (tmp_path / "s/skipped.txt").read_text().count("\n") == 1


def test_ntu_numbers_in_other_dress(tmp_path: Path) -> None:
    """Line ends, spaces and missing values: what reads the same is the same."""
    raw_files.ntu(tmp_path / "raw")
    text = next((tmp_path / "raw").rglob("*.skeleton")).read_bytes()
    expected = ntu.parse(text)
    for other in (
        text.replace(b"\r\n", b"\n"),
        text.rstrip(),
        text.replace(b"280.1 ", b"280.1  "),
        text.replace(b" 2\r", b" 2 \r"),
    ):
        total, frames, ids, xyz = ntu.parse(other)
        assert (total, frames.tolist(), ids) == (expected[0], expected[1].tolist(), expected[2])
        np.testing.assert_array_equal(xyz, expected[3])
    first = text.split(b"\r\n")[4].split()[0]
    clips = ntu.convert_mmaction2(*ntu.parse(text.replace(first, b"nan", 1)))
    assert np.isfinite(clips).all()
    assert not clips[0, 0, 0].any()


def test_what_nobody_else_may_be_called(tmp_path: Path) -> None:
    poses = raw_files.nw_ucla(tmp_path / "raw")
    again = tmp_path / "raw/other" / "a01_s01_e00_v01.json"
    raw_files.write(again, (tmp_path / "raw/all_sqe/a01_s01_e00_v01.json").read_bytes())
    clips = prepare(tmp_path / "raw", tmp_path / "s")
    assert clips.frame_dir.tolist() == sorted(poses)
    assert clips.notes == ("skipped a01_s01_e00_v01: there was a clip of this name before",)


UCLA = {
    "label of the class": ({"label": 1}, None),
    "label of the action": ({"label": 1.0}, None),
    "no label": ({"label": None}, "its label is None, its name says 1"),
    "another label": ({"label": 2}, "its label is 2, its name says 1"),
    "flat": ({"skeletons": np.ones((4, 60)).tolist()}, None),
    "no frames": ({"skeletons": []}, "shape \\(0,\\)"),
    "ragged": ({"skeletons": [[[1.0, 2.0]]]}, "shape"),
    "zeros": ({"skeletons": np.zeros((4, 20, 3)).tolist()}, "every joint is 0"),
    "another clip": ({"file_name": "a02_s01_e00_v01"}, "which is another clip"),
    "text": ({"skeletons": "none"}, "damaged"),
}


@pytest.mark.parametrize("case", UCLA)
def test_nw_ucla_is_liberal_where_it_is_clear(tmp_path: Path, case: str) -> None:
    change, said = UCLA[case]
    raw_files.nw_ucla(tmp_path / "raw")
    path = tmp_path / "raw/all_sqe/a01_s01_e00_v01.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    clips = prepare(tmp_path / "raw", tmp_path / "s")
    if said is None:
        assert len(clips) == 4
    else:
        assert len(clips) == 3
        assert re.search(said, clips.notes[0])


def index(folder: Path, *, pyskl: bool) -> list[dict]:
    """An index of three clips and the skeletons beside it."""
    rng, clips, raw = np.random.default_rng(0), [], {}
    for i, counts in enumerate(([1, 2, 0, 3, 1], [2, 2], [1, 12, 1])):
        frame = np.repeat(np.arange(len(counts)), counts).astype(np.int16)
        keypoint = rng.uniform(0.1, 300, (len(frame), 17, 3)).astype(np.float16)
        keypoint[..., 2] = rng.uniform(0, 1, (len(frame), 17))
        clip = {
            "frame_dir": f"v{i}",
            "label": i,
            "total_frames": len(counts),
            "frame_inds": frame,
            "img_shape": (240, 320),
        }
        clip |= {"box_score": np.linspace(0.4, 1, len(frame)), "valid": {0.5: len(counts) - i, 0.9: 0}}
        if pyskl:
            clip["raw_file"] = "/somewhere/kp_0.pkl"
        clips.append(clip)
        raw[f"v{i}"] = {"keypoint": keypoint}
        (folder / "skeletons").mkdir(parents=True, exist_ok=True)
        write_pickle(folder / f"skeletons/v{i}.pkl", raw[f"v{i}"])
    if pyskl:
        write_pickle(folder / "skeletons/kp_0.pkl", raw)
    write_pickle(folder / "k400.pkl", {"split": {"train": ["v0", "v1"], "val": ["v2"]}, "annotations": clips})
    return [{**clip, **raw[clip["frame_dir"]]} for clip in clips]


def upstream_decompress(frame_inds: np.ndarray, keypoint: np.ndarray, max_person: int) -> np.ndarray:
    """DecompressPose step by step."""
    places = {t: i for i, t in enumerate(np.unique(frame_inds))}
    frames = [places[t] for t in frame_inds]
    people = max(frames.count(t) for t in frames)
    kp, score = np.zeros((people, len(places), 17, 2), np.float16), np.zeros((people, len(places), 17), np.float16)
    count = [0] * len(places)
    for t, one in zip(frames, keypoint, strict=True):
        kp[count[t], t], score[count[t], t] = one[:, :2], one[:, 2]
        count[t] += 1
    if people > max_person:
        for t, n in enumerate(count):
            total = score[:n, t].sum(-1)
            order = sorted(range(n), key=lambda m: -total[m])
            score[:n, t], kp[:n, t] = score[order, t], kp[order, t]
    return np.concatenate([kp, score[..., None]], -1)[:max_person]


@pytest.mark.parametrize("pyskl", [False, True], ids=["mmaction2", "pyskl"])
def test_an_index_of_skeletons(tmp_path: Path, pyskl: bool) -> None:
    clips = index(tmp_path, pyskl=pyskl)
    with pytest.raises(UserError, match="is an index of skeletons that lie in other files; give their folder"):
        prepare(tmp_path / "k400.pkl", tmp_path / "s")
    found = prepare(tmp_path / "k400.pkl", tmp_path / "s", skeletons=tmp_path / "skeletons")
    assert found.channels == "xys"
    assert found.img_shape.tolist() == [[240, 320]] * 3
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(found.clip(i), upstream_decompress(clip["frame_inds"], clip["keypoint"], 10))
    assert found.num_person.tolist() == [3, 2, 10]
    assert found.total_frames.tolist() == [4, 2, 3]
    two = prepare(tmp_path / "k400.pkl", tmp_path / "two", skeletons=tmp_path / "skeletons", max_person=2)
    np.testing.assert_array_equal(two.clip(2), upstream_decompress(clips[2]["frame_inds"], clips[2]["keypoint"], 2))

    some = prepare(tmp_path / "k400.pkl", tmp_path / "r", skeletons=tmp_path / "skeletons", valid_ratio=0.5)
    assert some.frame_dir.tolist() == ["v0", "v1"]
    kept = clips[0]["box_score"] >= 0.5
    np.testing.assert_array_equal(
        some.clip(0), upstream_decompress(clips[0]["frame_inds"][kept], clips[0]["keypoint"][kept], 10)
    )
    with pytest.raises(UserError, match=r"does not say how many frames are valid at 0\.7"):
        prepare(tmp_path / "k400.pkl", tmp_path / "q", skeletons=tmp_path / "skeletons", valid_ratio=0.5, box_thr=0.7)
    (tmp_path / "skeletons/v1.pkl").unlink()
    if not pyskl:
        assert len(prepare(tmp_path / "k400.pkl", tmp_path / "t", skeletons=tmp_path / "skeletons")) == 2


def test_decompress_of_no_order() -> None:
    frame = np.array([3, 3, 7], np.int16)
    x = np.arange(3 * 17 * 3, dtype=np.float16).reshape(3, 17, 3)
    np.testing.assert_array_equal(decompress(frame, x, 10), upstream_decompress(frame, x, 10))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_poses_of_a_pickle_stay_in_the_file(tmp_path: Path, protocol: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 9, 25, 3)).astype(np.float16)
    path = write_pickle(
        tmp_path / "a.pkl", {"annotations": [{"keypoint": x, "label": 3, "frame_dir": "a" * 300}]}, protocol
    )
    found = load_plain(path, defer=True)["annotations"][0]["keypoint"]
    assert isinstance(found, Array)
    assert isinstance(found._data, Deferred)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    np.testing.assert_array_equal(found.value, x)
    again = pickle.loads(pickle.dumps(found))  # as it goes to a worker
    np.testing.assert_array_equal(again.value, x)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(ValueError, match="ends in the middle"):
        _ = found.value


def write_table(folder: Path) -> raw_files.Poses:
    """Two clips in one CSV: one person, and two with a gap."""
    rng, lines, poses = (
        np.random.default_rng(0),
        ["video;t;who;action;part;" + ";".join(f"{j}_{a}" for j in "abc" for a in "xyz")],
        {},
    )
    for clip, people, action in (("one", 1, "walk"), ("two", 2, "run")):
        pose = raw_files.moving(rng, people, 4, 3, 3)
        if people == 2:
            pose[1, 2] = 0
        for t in range(4):
            for m in range(people):
                if pose[m, t].any():
                    lines.append(f"{clip};{t * 10};p{m};{action};train;" + ";".join(map(str, pose[m, t].reshape(-1))))
        poses[clip] = pose
    raw_files.write(folder / "clips.csv", "\n".join(lines) + "\n")
    raw_files.write(
        folder / "table.yaml",
        "layout: {num_node: 3, inward: [[0, 1], [2, 1]], center: 1, joint_names: [a, b, c]}\nchannels: xyz\n"
        "clip: video\nframe: t\nperson: who\nlabel: action\nsplit: part\n",
    )
    return poses


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    poses = write_table(tmp_path)
    clips = prepare(tmp_path / "clips.csv", tmp_path / "s", dtype="float32", table=tmp_path / "table.yaml")
    assert (clips.label_names, clips.label.tolist()) == (("run", "walk"), [1, 0])
    assert clips.splits["train"].all()
    for i, name in enumerate(clips.frame_dir.tolist()):
        np.testing.assert_allclose(clips.clip(i), poses[name], rtol=1e-6)
    described = tmp_path / "table.yaml"
    for change, said in (
        ("clop: video", "unknown setting 'clop'; expected layout"),
        ('columns: "{joint}{what}"', "expected a pattern with {joint} and {axis}"),
        ("columns: [a, b]", "columns name 2 columns, expected 9: xyz of each joint"),
        ("axes: TV", "axes are 'TV', expected letters of NMTVC"),
        ("img_shape: 3", "img_shape is 3, expected"),
        ("frame: video", "holds '.*' where a number belongs"),
        (2000 * "[", "table.yaml: cannot be read"),
    ):
        text = described.read_text()
        described.write_text(text + change + "\n")
        with pytest.raises(UserError, match=said):
            prepare(tmp_path / "clips.csv", tmp_path / "t", table=described)
        described.write_text(text)
    with pytest.raises(UserError, match="say with --table YAML how its tables are laid out"):
        prepare(tmp_path / "clips.csv", tmp_path / "t", format="table")


@pytest.mark.parametrize("axes", ["NMTVC", "NCTVM", "NTVC"])
def test_arrays_of_ones_own(tmp_path: Path, axes: str) -> None:
    pose = raw_files.moving(np.random.default_rng(0), 3, 2 if "M" in axes else 1, 6, 17, 2)
    pose[1, :, 4:] = 0
    array = pose if "M" in axes else pose[:, 0]
    array = array.transpose(["NMTVC".replace("M", "" if "M" not in axes else "M").index(axis) for axis in axes])
    np.savez(tmp_path / "a.npz", x=array, y=[2, 0, 2], names=["a", "b", "c"], frames=[6, 4, 6])
    raw_files.write(
        tmp_path / "t.yaml",
        f"layout: coco\nchannels: xy\narray: x\naxes: {axes}\nlabel: y\nclip: names\nlength: frames\n",
    )
    clips = prepare(tmp_path / "a.npz", tmp_path / "s", dtype="float32", format="table", table=tmp_path / "t.yaml")
    assert (clips.label.tolist(), clips.num_classes) == ([2, 0, 2], 3)
    for i, frames in enumerate((6, 4, 6)):
        np.testing.assert_allclose(clips.clip(i), pose[i, :, :frames], rtol=1e-6)


def test_labels_from_a_list(tmp_path: Path) -> None:
    raw_files.openpose(tmp_path / "raw")
    listed = raw_files.write(tmp_path / "l.csv", "id,label,split\na,sit,one\ntrain/jump/b,stand,two\n")
    clips = prepare(tmp_path / "raw", tmp_path / "s", labels=listed, img_shape=(480, 640))
    assert (clips.label_names, clips.label.tolist(), clips.img_shape.tolist()) == (
        ("sit", "stand"),
        [1, 0],
        [[480, 640]] * 2,
    )
    assert clips.notes == ("skipped val/wave/c: the list of labels does not name it",)
    for text, said in (
        ("a,x\na,y\n", "names a twice"),
        ("id,class\n", "expected id,label"),
        ("a\n", "expected id,label"),
        ("", "expected id"),
    ):
        with pytest.raises(UserError, match=said):
            prepare(tmp_path / "raw", tmp_path / "t", labels=raw_files.write(tmp_path / "bad.csv", text))


def test_a_format_that_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for make, said in (
        (lambda: tmp_path / "none", "holds no files"),
        (lambda: tmp_path / "absent", "cannot be read: No such file"),
        (
            lambda: raw_files.write(tmp_path / "x/readme.md", "hello").parent,
            r"its files \(readme.md\) tell no known format",
        ),
        (lambda: raw_files.write(tmp_path / "z/a.zip", "PK\3\4 no zip").parent, "not a whole zip"),
    ):
        with pytest.raises(UserError, match=said):
            prepare(make(), tmp_path / "s")
    raw_files.ntu(tmp_path / "two")
    raw_files.msr_action3d(tmp_path / "two")
    with pytest.raises(UserError, match="could be ntu, msr_action3d; say which with --format"):
        prepare(tmp_path / "two", tmp_path / "s")
    assert len(prepare(tmp_path / "two", tmp_path / "s", format="msr_action3d")) == 3
    with pytest.raises(UserError, match="format 'nto': unknown; expected one of pickle, ntu"):
        prepare(tmp_path / "two", tmp_path / "t", format="nto")
    with pytest.raises(UserError, match="semantics 'pyskl': MSR-Action3D offers mmaction2"):
        prepare(tmp_path / "two", tmp_path / "t", format="msr_action3d", semantics="pyskl")
    with pytest.raises(UserError, match="layout 'coco': the skeleton of MSR-Action3D is kinect20"):
        prepare(tmp_path / "two", tmp_path / "t", format="msr_action3d", layout="coco")
    with pytest.raises(UserError, match="prepare"):
        open_dataset(tmp_path / "two")
    assert get_layout("kinect20").joint_names[3] == "hip_center"
