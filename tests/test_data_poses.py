"""Clips without classes: every format is read for prediction where nothing says what its clips show."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import raw_files
from clip_sets import annotations, npz_arrays, small, write_pickle

from msg3d_fast.data import open_dataset
from msg3d_fast.data.poses import PoseSource
from msg3d_fast.data.readers import Options
from msg3d_fast.data.store_writer import write_store
from msg3d_fast.errors import UserError
from msg3d_fast.graph import Layout, get_layout


def poses_of(source: PoseSource) -> dict[str, np.ndarray]:
    found = {}
    for _, clips in source:
        if clips is not None:
            found |= {str(name): np.array(clips.clip(i)) for i, name in enumerate(clips.frame_dir)}
    return found


def renamed(folder: Path, suffix: str) -> dict[str, str]:
    """Gives the files names that say nothing; new names by old."""
    names = {}
    for i, path in enumerate(sorted(folder.rglob(f"*{suffix}"))):
        names[path.stem] = f"recording_{i}"
        path.rename(path.with_name(f"recording_{i}{suffix}"))
    return names


def ntu(folder: Path) -> dict[str, np.ndarray]:
    poses = raw_files.ntu(folder)
    names = renamed(folder, ".skeleton")
    return {names[name]: pose for name, pose in poses.items()}


def kinetics(folder: Path) -> dict[str, np.ndarray]:
    poses = raw_files.kinetics(folder)
    for path in folder.rglob("*.json"):
        if path.stem.endswith(("_label", "_empty")):
            path.unlink()
        else:
            path.write_text(json.dumps({"data": json.loads(path.read_text())["data"]}))
    return poses


def nw_ucla(folder: Path) -> dict[str, np.ndarray]:
    poses = raw_files.nw_ucla(folder)
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps({"skeletons": json.loads(path.read_text())["skeletons"]}))
    names = renamed(folder, ".json")
    return {names[name]: pose for name, pose in poses.items()}


def openpose(folder: Path) -> dict[str, np.ndarray]:
    pose = raw_files.openpose(folder / "all")["train/wave/a"]
    (folder / "all/train/wave/a").rename(folder / "a")
    shutil.rmtree(folder / "all")
    return {"a": pose}


def coco(folder: Path) -> dict[str, np.ndarray]:
    pose = raw_files.coco(folder)["train/run/clip"]
    (folder / "train/run/clip.json").rename(folder / "people.json")
    (folder / "val.json").unlink()
    return {"people": pose}


CASES: dict[str, tuple[Callable[[Path], dict[str, np.ndarray]], str, str]] = {
    "ntu": (ntu, "nturgb+d", "xyz"),
    "kinetics": (kinetics, "openpose", "xys"),
    "nw_ucla": (nw_ucla, "kinect20", "xyz"),
    "utd_mhad": (raw_files.utd_mhad, "kinect20", "xyz"),
    "msr_action3d": (raw_files.msr_action3d, "kinect20", "xyz"),
    "openpose": (openpose, "openpose25", "xys"),
    "coco": (coco, "coco", "xys"),
}


@pytest.mark.parametrize("name", CASES)
def test_raw_files_without_classes(tmp_path: Path, name: str) -> None:
    write, layout, channels = CASES[name]
    expected = write(tmp_path / "raw")
    source = PoseSource(tmp_path / "raw", get_layout(layout), channels)
    found = poses_of(source)
    assert found.keys() == expected.keys(), source.skipped
    for clip, pose in expected.items():
        np.testing.assert_allclose(found[clip], pose, rtol=1e-6, atol=1e-6)
    assert source.channels == channels
    assert not source.skipped


def test_pickle_without_labels(tmp_path: Path) -> None:
    content = annotations(3)["annotations"]
    for clip in content:
        del clip["label"]
    path = write_pickle(tmp_path / "a.pkl", content)
    found = poses_of(PoseSource(path, get_layout("coco"), "xys", dtype="float16"))
    assert found.keys() == {"clip_0", "clip_1", "clip_2"}
    assert found["clip_1"].shape == (2, 4, 17, 3)
    assert (found["clip_1"][..., 2] == content[1]["keypoint_score"]).all()


def test_channels_are_the_same_whoever_names_the_skeleton(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "a.pkl", annotations(joints=17, flat=False))  # (x, y, score), no image sizes
    for layout in (None, "coco"):  # a test names the network's skeleton where training named none
        assert open_dataset(path, layout=layout).channels == "xys"


def test_store_and_npz_keep_their_float_type(tmp_path: Path) -> None:
    clips = small()
    write_store(clips, tmp_path / "store", "float16")
    arrays = {k: v for k, v in npz_arrays(clips).items() if not k.startswith(("label", "split", "frame_dir"))}
    np.savez(tmp_path / "poses.npz", **arrays)
    for name, dtype in (("store", np.float16), ("poses.npz", clips.keypoint.dtype)):
        source = PoseSource(tmp_path / name, clips.layout, clips.channels, dtype="float32")
        found = list(poses_of(source).values())
        assert len(found) == len(clips)
        assert all((pose == clips.clip(i).astype(dtype)).all() for i, pose in enumerate(found))
        assert found[0].dtype == dtype


def test_tables_without_labels(tmp_path: Path) -> None:
    about = "layout: {num_node: 2, inward: [[1, 0]], center: 0, joint_names: [hip, knee]}\nlabel: action\n"
    (tmp_path / "t.yaml").write_text(f'{about}columns: "{{joint}}_{{axis}}"\n')
    (tmp_path / "walk.csv").write_text("hip_x,hip_y,knee_x,knee_y\n1,2,3,4\n5,6,7,\n")
    layout = Layout(("hip", "knee"), ((1, 0),), 0)
    source = PoseSource(tmp_path / "walk.csv", layout, "xy", options=Options(table=tmp_path / "t.yaml"))
    found = poses_of(source)
    assert found["walk"].tolist() == [[[[1, 2], [3, 4]], [[5, 6], [0, 0]]]]
    assert source.missing == 1


def test_another_skeleton_is_refused(tmp_path: Path) -> None:
    clips = small()
    np.savez(tmp_path / "poses.npz", **npz_arrays(clips))
    with pytest.raises(UserError, match="has 17 joints \\(coco\\), the network was trained on 25"):
        PoseSource(tmp_path / "poses.npz", get_layout("openpose25"), "xys")
    names = clips.layout.joint_names
    chain = Layout(names, tuple((v, v - 1) for v in range(1, len(names))), 0)
    with pytest.raises(UserError, match="its skeleton coco joins other joints than custom"):
        PoseSource(tmp_path / "poses.npz", chain, "xys")
    raw_files.openpose(tmp_path / "raw")
    with pytest.raises(UserError, match=r"has 25 joints .* trained on 17"):
        PoseSource(tmp_path / "raw", get_layout("coco"), "xys")
    with pytest.raises(UserError, match="absent: cannot be read"):
        PoseSource(tmp_path / "absent", get_layout("coco"), "xys")
