"""The annotation pickle of pyskl and MMAction2.

{"split": {name: [id, ...]}, "annotations": [clip, ...]}    or the list of clips alone
clip = {"frame_dir": id, "label": int, "total_frames": T, "keypoint": (M, T, V, C),
        2-D: "keypoint_score": (M, T, V), "img_shape": (h, w)}

In a multi-label file, labels are lists of class numbers.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import Layout
from .clips import ClipSet, clean, label_array
from .layouts import choose_layout
from .normalize import DEFAULT_IMG_SHAPE
from .unpickle import Array, load_plain


class _BadClip(ValueError):
    """Why a clip cannot be used."""


def read_annotations(
    path: Path,
    *,
    layout: str | Layout | Mapping[str, Any] | None = None,
    channels: str | None = None,
    skipped: list[str] | None = None,
) -> ClipSet:
    """The clips of an annotation pickle.

    Args:
        path: the file.
        layout: the skeleton; by default told from the number of joints.
        channels: "xy", "xys" or "xyz"; by default told from scores, image sizes and joints.
        skipped: receives one line for each clip that cannot be used; without it such a clip is an error.

    Raises:
        UserError: not such a file, a clip that cannot be used, a skeleton that cannot be told.
    """
    clips, splits = _parts(path, load_plain(path))
    key = "filename" if isinstance(clips[0], dict) and "filename" in clips[0] else "frame_dir"
    shapes = Counter(shape for clip in clips if (shape := _joints_and_channels(clip)) is not None)
    usual = shapes.most_common(1)[0][0] if shapes else ()
    listed = [isinstance(clip, dict) and _is_listed(clip.get("label")) for clip in clips]
    several = 2 * sum(listed) > len(clips)
    usable, poses = [], []
    for i, clip in enumerate(clips):
        try:
            label, pose, image = _label(clip, several), _pose(clip, usual), _image_shape(clip)
        except _BadClip as reason:
            name = _text(clip.get(key, i) if isinstance(clip, dict) else i)
            if skipped is None:
                raise UserError(f"{path}: clip {name}: {reason}; correct it, or let prepare skip it") from None
            skipped.append(f"clip {name}: {reason}")
        else:
            fields = {"frame_dir": _text(clip.get(key, i)), "label": label, "img_shape": image}
            usable.append({"scored": "keypoint_score" in clip, "imaged": "img_shape" in clip, **fields})
            poses.append(pose)
    if not usable:
        raise UserError(f"{path}: none of its {len(clips)} clips can be used: {skipped[0] if skipped else ''}")
    return _clip_set(path, usable, poses, splits, layout, channels)


def _parts(path: Path, content: Any) -> tuple[list[Any], Mapping[str, Any]]:
    splits: Any = {}
    if isinstance(content, dict) and "annotations" in content:
        content, splits = content["annotations"], content.get("split") or {}
    if not isinstance(content, list) or not isinstance(splits, dict):
        keys = f" with the keys {', '.join(map(_text, list(content)[:5]))}" if isinstance(content, dict) else ""
        raise UserError(
            f"{path}: holds a {type(content).__name__}{keys}, expected annotations: a dict with 'split' and "
            "'annotations', or a list of clips"
        )
    if not content:
        raise UserError(f"{path}: holds no clips; write at least one annotation")
    return content, splits


def _text(value: Any) -> str:
    """An id or a name; damaged files hold all sorts of things in their place."""
    return value if isinstance(value, str) else _shown(value)


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.40}"
    except (ValueError, RecursionError):  # an int with too many digits, lists in lists in lists
        return f"<{type(value).__name__}>"


def _joints_and_channels(clip: Any) -> tuple[int, int] | None:
    x = clip.get("keypoint") if isinstance(clip, dict) else None
    if not isinstance(x, Array) or x.value.ndim != 4:
        return None
    return x.value.shape[2], x.value.shape[3] + ("keypoint_score" in clip)


def _array(clip: dict, key: str, ndim: int) -> np.ndarray:
    array = clip[key].value if isinstance(clip[key], Array) else None
    if array is None or array.ndim != ndim or array.dtype.kind not in "fiu":
        found = f"{array.dtype} array of shape {array.shape}" if array is not None else type(clip[key]).__name__
        expected = "(M, T, V, C)" if ndim == 4 else "(M, T, V)"
        raise _BadClip(f"{key} is a {found}, expected numbers {expected}")
    return array


def _pose(clip: dict, usual: tuple[int, ...]) -> np.ndarray:
    """Keypoints (M, T, V, C), the score as their last channel; a float type of at most 32 bits."""
    if "keypoint" not in clip:
        hint = " (an index of skeletons that lie in other files?)" if "frame_inds" in clip else ""
        raise _BadClip(f"has no keypoint{hint}")
    x = _array(clip, "keypoint", 4)
    if "keypoint_score" in clip:
        score = _array(clip, "keypoint_score", 3)
        if score.shape != x.shape[:3] or x.shape[3] != 2:
            raise _BadClip(f"keypoint_score of shape {score.shape} does not fit keypoint of shape {x.shape}")
        x = np.concatenate([x, score[..., None]], -1)
    if x.shape[2:] != usual:
        found = f"{x.shape[2]} joints x {x.shape[3]} channels"
        raise _BadClip(f"has {found}, most clips of the file have {usual[0]} x {usual[1]}")
    if x.shape[3] not in (2, 3) or 0 in x.shape:
        raise _BadClip(f"keypoint has the shape {x.shape}, expected persons, frames, joints and 2 or 3 channels")
    if clip.get("total_frames", x.shape[1]) != x.shape[1]:
        raise _BadClip(f"total_frames is {_shown(clip['total_frames'])}, keypoint has {x.shape[1]} frames")
    return x if x.dtype in (np.float16, np.float32) else x.astype(np.float32)


def _is_listed(label: Any) -> bool:
    return isinstance(label, list | tuple | set | frozenset) or (isinstance(label, Array) and label.value.ndim == 1)


def _label(clip: Any, several: bool) -> int | list[int]:
    """A class number, or in a multi-label file the list of them."""
    if not isinstance(clip, dict):
        raise _BadClip(f"is a {type(clip).__name__}, expected a dict")
    label = clip.get("label")
    if several and _is_listed(label):
        return [_class(one) for one in (label.value.tolist() if isinstance(label, Array) else label)]
    return [_class(label)] if several else _class(label)


def _class(label: Any) -> int:
    if isinstance(label, bool) or not isinstance(label, int):
        raise _BadClip(f"label is {_shown(label)}, expected one class number")
    if not 0 <= label < 1 << 20:
        raise _BadClip(f"label is {_shown(label)}, expected a class number from 0")
    return label


def _image_shape(clip: dict) -> tuple[int, int]:
    shape = clip.get("img_shape", DEFAULT_IMG_SHAPE)
    shape = tuple(shape.value.tolist()) if isinstance(shape, Array) else shape
    height_width = shape[:2] if isinstance(shape, tuple | list) else ()
    if len(height_width) < 2 or not all(isinstance(size, int) and size > 0 for size in height_width):
        raise _BadClip(f"img_shape is {_shown(shape)}, expected (height, width) in pixels")
    return height_width


def _clip_set(
    path: Path,
    clips: list[dict],
    poses: list[np.ndarray],
    splits: Mapping[str, Any],
    layout: str | Layout | Mapping[str, Any] | None,
    channels: str | None,
) -> ClipSet:
    joints, width = poses[0].shape[2:]
    scored, imaged = clips[0]["scored"], any(clip["imaged"] for clip in clips)
    if channels is None:
        flat = scored or imaged or (layout is None and joints in (17, 18))
        channels = "xy" if width == 2 else "xys" if flat else "xyz"
    skeleton = choose_layout(joints, channels, layout, str(path))
    num_person = np.array([x.shape[0] for x in poses])
    total_frames = np.array([x.shape[1] for x in poses])
    keypoint = np.concatenate([x.reshape(-1, joints, width) for x in poses])
    frame_dir = np.array([clip["frame_dir"] for clip in clips])
    label = label_array([clip["label"] for clip in clips])
    known, notes, masks = set(frame_dir.tolist()), [], {}
    for name, ids in splits.items():
        if not isinstance(ids, list | tuple | set | frozenset):
            raise UserError(f"{path}: split {_text(name)!r} is a {type(ids).__name__}, expected a list of clip ids")
        wanted = {_text(one) for one in ids}
        masks[_text(name)] = np.array([one in wanted for one in frame_dir.tolist()])
        if absent := sorted(wanted - known):
            few = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            notes.append(f"split {_text(name)!r}: {len(absent)} of its {len(wanted)} ids have no clip: {few}")
    return ClipSet(
        missing=clean(keypoint),
        keypoint=keypoint,
        num_person=num_person,
        total_frames=total_frames,
        label=label,
        frame_dir=frame_dir,
        label_names=tuple(str(c) for c in range(label.shape[1] if label.ndim == 2 else int(label.max()) + 1)),
        layout=skeleton,
        splits=masks,
        channels=channels,
        img_shape=np.array([clip["img_shape"] for clip in clips]) if imaged else None,
        notes=tuple(notes),
        name=str(path),
    )
