"""Small data sets that the data tests share."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from msg3d_fast.data import ClipSet, synthetic

COCO = ("coco", "xys")


def annotations(num: int = 6, *, joints: int = 17, flat: bool = True, dtype: type = np.float16) -> dict[str, Any]:
    """Content of an annotation file: clips of one or two persons and 3 to 3 + num frames, splits train and val."""
    rng = np.random.default_rng(7)
    clips = []
    for i in range(num):
        shape = (1 + i % 2, 3 + i, joints, 2 if flat else 3)
        clip = {"frame_dir": f"clip_{i}", "label": i % 3, "total_frames": shape[1]}
        clip["keypoint"] = rng.uniform(0, 1000 if flat else 2, shape).astype(dtype)
        if flat:
            clip |= {"img_shape": (1080, 1920), "original_shape": (1080, 1920)}
            clip["keypoint_score"] = rng.uniform(0, 1, shape[:3]).astype(dtype)
        clips.append(clip)
    ids = [clip["frame_dir"] for clip in clips]
    return {"split": {"train": ids[: num // 2], "val": ids[num // 2 :]}, "annotations": clips}


def write_pickle(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def npz_arrays(clips: ClipSet) -> dict[str, np.ndarray]:
    """The arrays of a ragged `.npz` that holds these clips."""
    return {
        "keypoints": np.array(clips.keypoint),
        "num_person": clips.num_person,
        "total_frames": clips.total_frames,
        "label": clips.label,
        "frame_dir": clips.frame_dir,
        "label_names": np.array(clips.label_names),
        "joint_names": np.array(clips.layout.joint_names),
        "inward": np.array(clips.layout.inward),
        "center": np.array([clips.layout.center]),
        "channels": np.array(clips.channels),
        **{f"split_{name}": mask for name, mask in clips.splits.items()},
    }


def small(**options: Any) -> ClipSet:
    """Twelve generated clips of 5 to 12 frames."""
    return synthetic(**{"num_classes": 3, "num_clips": 12, "frames": (5, 12), **options})
