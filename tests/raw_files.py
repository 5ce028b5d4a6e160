"""Raw files of every format that `prepare` reads, small and made up, written as the data sets' own files are."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from msg3d_fast.graph import get_layout

Poses = dict[str, np.ndarray]  # what a clip's pose must be once it is prepared, by id


def moving(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Joints that move, away from 0, with four decimals."""
    return np.round(rng.uniform(0.5, 2.0, shape) * rng.choice([-1, 1], shape), 4)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def skeleton_text(frames: list[list[tuple[int, np.ndarray]]], end: str = "\r\n") -> str:
    """A `.skeleton` text: of each frame, id and joints (25, 3) of every body."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body, joints in bodies:
            lines += [f"{body} 0 1 0 1 0 0 0.06 -0.1 2", str(len(joints))]
            lines += [
                " ".join(f"{v:.7g}" for v in joint) + " 280.1 190.2 1036.2 519.1 -0.2 0.05 0.96 -0.1 2"
                for joint in joints
            ]
    return end.join(lines) + end


def ntu(folder: Path, names: list[str] | None = None, frames: int = 13) -> Poses:
    """Clips of one and two bodies, named as NTU names them."""
    rng, poses = np.random.default_rng(1), {}
    default = [
        f"S{s:03d}C{c:03d}P{p:03d}R001A{a:03d}"
        for s, c, p, a in ((1, 1, 1, 1), (1, 2, 3, 60), (2, 3, 38, 7), (3, 1, 6, 9))
    ]
    for i, name in enumerate(names or default):
        people = 1 + i % 2
        x = moving(rng, people, frames, 25, 3)
        x[1:] *= 0.5  # the second body moves less
        content = skeleton_text([[(72057594037944738 + m, x[m, t]) for m in range(people)] for t in range(frames)])
        write(folder / f"nturgb+d_skeletons/{name}.skeleton", content)
        poses[name] = x
    return poses


def kinetics(folder: Path) -> Poses:
    rng, poses = np.random.default_rng(2), {}
    for part in ("train", "val"):
        labels = {}
        for i in range(3):
            name, frames = f"{part}_video_{i}", []
            pose = np.zeros((2, 5 + i, 18, 3))
            for t in range(5 + i):
                x = np.round(rng.uniform(0.1, 0.9, (3, 18, 2)), 3)
                score = np.round(rng.uniform(0.2, 0.9, (3, 18)) + np.arange(3)[::-1, None] % 2, 3)
                score[0, 3] = 0
                people = [{"pose": x[m].reshape(-1).tolist(), "score": score[m].tolist()} for m in range(3)]
                frames.append({"frame_index": t, "skeleton": people})
                best = np.argsort(-score.sum(1), kind="stable")[:2]
                pose[:, t, :, 0], pose[:, t, :, 1] = x[best][..., 0] - 0.5, 0.5 - x[best][..., 1]
                pose[:, t, :, 2] = score[best]
            pose[pose[..., 2] == 0] = 0
            video = {"data": frames, "label": f"class {i}", "label_index": i}
            write(folder / f"kinetics_{part}/{name}.json", json.dumps(video))
            labels[name] = {"has_skeleton": True, "label": f"class {i}", "label_index": i}
            poses[name] = pose
        labels[f"{part}_empty"] = {"has_skeleton": False, "label": "class 0", "label_index": 0}
        write(
            folder / f"kinetics_{part}/{part}_empty.json",
            json.dumps({"data": [], "label": "class 0", "label_index": 0}),
        )
        write(folder / f"kinetics_{part}_label.json", json.dumps(labels))
    return poses


def authors(folder: Path, joints: int = 25) -> Poses:
    rng, poses = np.random.default_rng(3), {}
    for part, count in (("train", 3), ("val", 2)):
        data = np.zeros((count, 3, 30, joints, 2), np.float32)
        data[..., 0] = moving(rng, count, 3, 30, joints)
        data[1:, ..., 1] = moving(rng, count - 1, 3, 30, joints)
        names = [f"{part}/S001C001P001R001A{i + 1:03d}.skeleton" for i in range(count)]
        if part == "val":
            names = [name.replace("C001", "C002") for name in names]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{part}_data_joint.npy", data)
        write(folder / f"{part}_label.pkl", pickle.dumps((names, list(range(count)))))
        for i, name in enumerate(names):
            poses[Path(name).stem] = data[i].transpose(3, 1, 2, 0)[: 1 + (i > 0)]
    return poses


def nw_ucla(folder: Path) -> Poses:
    rng, poses = np.random.default_rng(4), {}
    for i, (name, label) in enumerate(
        {"a01_s01_e00_v01": 1, "a08_s02_e01_v02": 7, "a12_s10_e04_v03": 10, "a05_s03_e02_v03": 5}.items()
    ):
        x = moving(rng, 6 + i, 20, 3)
        write(folder / f"all_sqe/{name}.json", json.dumps({"file_name": name, "skeletons": x.tolist(), "label": label}))
        poses[name] = x[None, :, [3, 2, 1, 0, *range(4, 20)]]
    return poses


def mat(name: str, array: np.ndarray, *, compressed: bool = True, order: str = "<") -> bytes:
    """A MATLAB file of level 5 with one double matrix."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)

    text = name.encode()
    short = struct.pack(f"{order}HH" if order == ">" else "<HH", *((len(text), 1) if order == ">" else (1, len(text))))
    named = short + text.ljust(4, b"\0") if len(text) <= 4 else element(1, text)
    body = element(6, struct.pack(f"{order}II", 6, 0)) + element(5, struct.pack(f"{order}{array.ndim}i", *array.shape))
    body += named + element(9, array.astype(f"{order}f8").tobytes(order="F"))
    whole = element(14, body)
    if compressed:
        packed = zlib.compress(whole)
        whole = struct.pack(f"{order}II", 15, len(packed)) + packed
    header = b"MATLAB 5.0 MAT-file, made up".ljust(124) + struct.pack(f"{order}H", 0x0100)
    return header + (b"IM" if order == "<" else b"MI") + whole


def utd_mhad(folder: Path) -> Poses:
    rng, poses = np.random.default_rng(5), {}
    for i, name in enumerate(("a1_s1_t1", "a27_s8_t4", "a3_s2_t1")):
        x = moving(rng, 20, 3, 7 + i)
        write(folder / f"Skeleton/{name}_skeleton.mat", mat("d_skel", x, compressed=i != 1, order="<>"[i == 2]))
        poses[name] = x.transpose(2, 0, 1)[None]
    return poses


MSR_NAMES = [
    "shoulder_left",
    "shoulder_right",
    "shoulder_center",
    "spine",
    "hip_left",
    "hip_right",
    "hip_center",
    "elbow_left",
    "elbow_right",
    "wrist_left",
    "wrist_right",
    "hand_left",
    "hand_right",
    "knee_left",
    "knee_right",
    "ankle_left",
    "ankle_right",
    "foot_left",
    "foot_right",
    "head",
]


def msr_action3d(folder: Path) -> Poses:
    rng, poses = np.random.default_rng(6), {}
    order = [MSR_NAMES.index(name) for name in get_layout("kinect20").joint_names]
    for i, name in enumerate(("a01_s01_e01", "a20_s10_e03", "a13_s02_e02")):
        x = moving(rng, 8 + i, 20, 3)
        lines = [f"  {a:.7e}  {b:.7e}  {c:.7e}  1.0000000e+00" for a, b, c in x.reshape(-1, 3)]
        write(folder / f"MSRAction3DSkeletonReal3D/{name}_skeleton3D.txt", "\n".join(lines) + "\n")
        poses[name] = x[None][:, :, order]
    return poses


def utkinect(folder: Path) -> Poses:
    rng, poses, labels = np.random.default_rng(7), {}, []
    for subject, take in ((1, 1), (2, 2)):
        frame = np.arange(100, 140)
        x = moving(rng, len(frame), 20, 3)
        lines = [f"{t} " + " ".join(f"{v:.4f}" for v in row.reshape(-1)) for t, row in zip(frame, x, strict=True)]
        write(folder / f"joints/joints_s{subject:02d}_e{take:02d}.txt", "\n".join(lines))
        labels.append(f"s{subject:02d}_e{take:02d}")
        for action, first, last in (("walk", 100, 110), ("throw", 115, 139)):
            labels.append(f"{action}: {first} {last}")
            inside = x[(frame >= first) & (frame <= last)]
            poses[f"s{subject:02d}_e{take:02d}_{action}"] = inside[None][:, :, [3, 2, 1, 0, *range(4, 20)]]
        labels.append("carry: NaN NaN")
    write(folder / "actionLabel.txt", "\n".join(labels) + "\n")
    return poses


def openpose(folder: Path, joints: int = 25) -> Poses:
    """Two persons who change places in the files; frames with a third, nobody and a false detection."""
    rng, poses = np.random.default_rng(8), {}
    for split, action, clip in (("train", "wave", "a"), ("train", "jump", "b"), ("val", "wave", "c")):
        base = rng.uniform(100, 200, (joints, 2))
        pose = np.zeros((2, 9, joints, 3))
        for t in range(9):
            for m in range(2):
                pose[m, t, :, :2] = np.round(base + 600 * m + rng.normal(0, 2, (joints, 2)), 3)
                pose[m, t, :, 2] = np.round(rng.uniform(0.6, 0.9, joints) - 0.3 * m, 3)
        pose[1, 4] = 0
        for t in range(9):
            people = [pose[m, t] for m in ([0, 1], [1, 0])[t % 2] if pose[m, t].any()]
            if t == 6:
                people.append(np.concatenate([base + 2000, np.full((joints, 1), 0.1)], 1))
            listed = [{"person_id": [-1], "pose_keypoints_2d": x.reshape(-1).tolist()} for x in people]
            content = json.dumps({"version": 1.3, "people": listed})
            write(folder / f"{split}/{action}/{clip}/{clip}_{t:012d}_keypoints.json", content)
        poses[f"{split}/{action}/{clip}"] = pose
    return poses


def coco(folder: Path) -> Poses:
    """Results of one clip per file, tracked, and annotations of two clips in one file."""
    rng, poses = np.random.default_rng(9), {}
    pose = np.round(np.concatenate([rng.uniform(10, 90, (2, 6, 17, 2)), rng.uniform(0.3, 1, (2, 6, 17, 1))], -1), 3)
    pose[0, :, :, 2] = np.maximum(pose[0, :, :, 2], 0.8)
    people = [
        {
            "image_id": f"clip_{t}.jpg",
            "category_id": 1,
            "keypoints": pose[m, t].reshape(-1).tolist(),
            "score": 0.9,
            "idx": m + 5,
        }
        for t in range(6)
        for m in (1, 0)
    ]
    write(folder / "train/run/clip.json", json.dumps(people))
    poses["train/run/clip"] = pose
    images, annotations = [], []
    for video in ("val/run/x", "val/sit/y"):
        seen = pose[:1].copy()
        seen[..., :2] += 5
        seen[..., 2] = 2.0
        seen[0, 2] = 0
        for t in range(6):
            number = 100 + len(images)
            images.append({"id": number, "file_name": f"{video}/{t:06d}.jpg", "height": 480, "width": 640})
            if t != 2:
                annotations.append({"id": number, "image_id": number, "keypoints": seen[0, t].reshape(-1).tolist()})
        poses[video] = np.minimum(seen, [np.inf, np.inf, 1])
    write(folder / "val.json", json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return poses


def zipped(folder: Path, path: Path) -> Path:
    """The files of a folder as a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in sorted(folder.rglob("*")):
            if one.is_file():
                archive.write(one, one.relative_to(folder))
    return path


WRITERS: dict[str, Callable[[Path], Poses]] = {
    "ntu": ntu,
    "kinetics": kinetics,
    "authors": authors,
    "nw_ucla": nw_ucla,
    "utd_mhad": utd_mhad,
    "msr_action3d": msr_action3d,
    "utkinect": utkinect,
    "openpose": openpose,
    "coco": coco,
}


def dumped(content: Any, protocol: int = 4) -> bytes:
    stream = io.BytesIO()
    pickle.dump(content, stream, protocol)
    return stream.getvalue()
