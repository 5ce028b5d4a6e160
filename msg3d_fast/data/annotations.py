"""The annotation pickle of pyskl and MMAction2.

{"split": {name: [id, ...]}, "annotations": [clip, ...]}    or the list of clips alone
clip = {"frame_dir": id, "label": int, "total_frames": T, "keypoint": (M, T, V, C),
        2-D: "keypoint_score": (M, T, V), "img_shape": (h, w)}

In a multi-label file, labels are lists of class numbers. Poses stay in the file until a clip is looked at.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..graph import Layout, get_layout
from .clips import ClipSet, clean, label_array
from .layouts import choose_layout, third_channel
from .normalize import DEFAULT_IMG_SHAPE
from .unpickle import Array, load_plain

FEW = 3  # absent ids that a note names


class BadClip(ValueError):
    """Why a clip cannot be used."""


@dataclass(frozen=True)
class Annotations:
    """A file that was looked through, its poses unread.

    Args:
        clips: the annotations.
        split: ids by name of the split.
        key: of an annotation's id.
        usual: joints and channels (with the score) that most clips have.
        several: whether labels are lists of classes.
        imaged: whether clips tell their image size.
        scored: whether scores come apart from the coordinates.
    """

    path: Path
    clips: list[Any]
    split: Mapping[str, Any]
    key: str
    usual: tuple[int, ...]
    several: bool
    imaged: bool
    scored: bool

    def name(self, clip: Any, place: int) -> str:
        """The id of a clip, or its place where it has none."""
        return text(clip.get(self.key, place) if isinstance(clip, dict) else place)

    def skeleton(self, layout: str | Layout | Mapping[str, Any] | None, channels: str | None) -> tuple[Layout, str]:
        """The skeleton and the channels: those given, else told from scores, image sizes and joints."""
        joints, width = self.usual
        if channels is None:
            told = joints in (17, 18) if layout is None else third_channel(get_layout(layout), width) == "xys"
            channels = "xy" if width == 2 else "xys" if self.scored or self.imaged or told else "xyz"
        elif self.scored and channels != "xys":
            raise UserError(
                f"{self.path}: channels is {channels!r}, but its clips hold (x, y) and a score; leave it out"
            )
        return choose_layout(joints, channels, layout, str(self.path)), channels

    def masks(self, frame_dir: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
        """The splits of the clips with these ids, and a note on each that names ids without a clip."""
        known, notes, masks = set(frame_dir), [], {}
        for name, ids in self.split.items():
            if not isinstance(ids, list | tuple | set | frozenset):
                raise UserError(
                    f"{self.path}: split {text(name)!r} is a {type(ids).__name__}, expected a list of clip ids"
                )
            wanted = {text(one) for one in ids}
            masks[text(name)] = np.array([one in wanted for one in frame_dir], bool)
            if absent := sorted(wanted - known):
                few = ", ".join(absent[:FEW]) + (", ..." if len(absent) > FEW else "")
                notes.append(f"split {text(name)!r}: {len(absent)} of its {len(wanted)} ids have no clip: {few}")
        return masks, notes


def open_annotations(path: Path) -> Annotations:
    """Look through an annotation pickle.

    Raises:
        UserError: not such a file, or without clips.
    """
    clips, splits = _parts(path, load_plain(path, defer=True))
    shapes = Counter(shape for clip in clips if (shape := _joints_and_channels(clip)) is not None)
    usual = shapes.most_common(1)[0][0] if shapes else ()
    first = next((clip for clip in clips if usual and _joints_and_channels(clip) == usual), {})
    return Annotations(
        path=path,
        clips=clips,
        split=splits,
        key="filename" if isinstance(clips[0], dict) and "filename" in clips[0] else "frame_dir",
        usual=usual,
        several=2 * sum(isinstance(clip, dict) and _is_listed(clip.get("label")) for clip in clips) > len(clips),
        imaged=any(isinstance(clip, dict) and "img_shape" in clip for clip in clips),
        scored="keypoint_score" in first,
    )


def read_annotations(
    path: Path,
    *,
    layout: str | Layout | Mapping[str, Any] | None = None,
    channels: str | None = None,
    skipped: list[str] | None = None,
) -> ClipSet:
    """The clips of an annotation pickle, in memory.

    Args:
        path: the file.
        layout: the skeleton; by default told from the number of joints.
        channels: "xy", "xys" or "xyz"; by default told from scores, image sizes and joints.
        skipped: receives one line for each clip that cannot be used; without it such a clip is an error.

    Raises:
        UserError: not such a file, a clip that cannot be used, a skeleton that cannot be told.
    """
    found = open_annotations(path)
    names, labels, images, poses = [], [], [], []
    for i, clip in enumerate(found.clips):
        name = found.name(clip, i)
        try:
            label, pose, image = class_of(clip, found.several), pose_of(clip, found.usual), image_shape(clip)
        except BadClip as reason:
            if skipped is None:
                raise UserError(f"{path}: clip {name}: {reason}; correct it, or let prepare skip it") from None
            skipped.append(f"clip {name}: {reason}")
        else:
            names.append(name)
            labels.append(label)
            images.append(image)
            poses.append(pose)
    if not names:
        raise UserError(f"{path}: none of its {len(found.clips)} clips can be used: {skipped[0] if skipped else ''}")
    skeleton, channels = found.skeleton(layout, channels)
    keypoint = np.concatenate([x.reshape(-1, *found.usual) for x in poses])
    label = label_array(labels)
    masks, notes = found.masks(names)
    return ClipSet(
        missing=clean(keypoint),
        keypoint=keypoint,
        num_person=np.array([x.shape[0] for x in poses]),
        total_frames=np.array([x.shape[1] for x in poses]),
        label=label,
        frame_dir=np.array(names),
        label_names=tuple(str(c) for c in range(label.shape[1] if label.ndim == 2 else int(label.max()) + 1)),
        layout=skeleton,
        splits=masks,
        channels=channels,
        img_shape=np.array(images) if found.imaged else None,
        notes=tuple(notes),
        name=str(path),
    )


def _parts(path: Path, content: Any) -> tuple[list[Any], Mapping[str, Any]]:
    splits: Any = {}
    if isinstance(content, dict) and "annotations" in content:
        content, splits = content["annotations"], content.get("split") or {}
    if not isinstance(content, list) or not isinstance(splits, dict):
        keys = f" with the keys {_in_one_line(list(content)[:5])}" if isinstance(content, dict) else ""
        raise UserError(
            f"{path}: holds a {type(content).__name__}{keys}, expected annotations: a dict with 'split' and "
            "'annotations', or a list of clips"
        )
    if not content:
        raise UserError(f"{path}: holds no clips; write at least one annotation")
    return content, splits


def _in_one_line(names: list[Any]) -> str:
    """Names out of a file, which may hold line breaks."""
    return ", ".join(" ".join(text(name).split()) for name in names)


def text(value: Any) -> str:
    """An id or a name; damaged files hold all sorts of things in their place."""
    return value if isinstance(value, str) else shown(value)


def shown(value: Any) -> str:
    """What a message shows of a value."""
    try:
        return f"{value!r:.40}"
    except (ValueError, RecursionError):  # an int with too many digits, lists in lists in lists
        return f"<{type(value).__name__}>"


def _joints_and_channels(clip: Any) -> tuple[int, int] | None:
    x = clip.get("keypoint") if isinstance(clip, dict) else None
    if not isinstance(x, Array) or x.ndim != 4:
        return None
    return x.shape[2], x.shape[3] + ("keypoint_score" in clip)


def array_of(clip: dict, key: str, ndim: int, expected: str) -> np.ndarray:
    """The numbers under a key of a clip.

    Raises:
        BadClip: something else, or bytes that cannot be read.
    """
    array = clip[key] if isinstance(clip[key], Array) else None
    if array is None or array.ndim != ndim or array.dtype.kind not in "fiu":
        found = f"{array.dtype} array of shape {array.shape}" if array is not None else type(clip[key]).__name__
        raise BadClip(f"{key} is a {found}, expected numbers {expected}")
    try:
        return array.value
    except (OSError, ValueError) as error:
        raise BadClip(f"{key} cannot be read ({str(error)[:80]})") from None


def pose_of(clip: Any, usual: tuple[int, ...]) -> np.ndarray:
    """Keypoints (M, T, V, C) of a clip, the score as their last channel; a float type of at most 32 bits."""
    if not isinstance(clip, dict):
        raise BadClip(f"is a {type(clip).__name__}, expected a dict")
    if "keypoint" not in clip:
        hint = " (an index of skeletons that lie in other files?)" if "frame_inds" in clip else ""
        raise BadClip(f"has no keypoint{hint}")
    x = array_of(clip, "keypoint", 4, "(M, T, V, C)")
    if "keypoint_score" in clip:
        score = array_of(clip, "keypoint_score", 3, "(M, T, V)")
        if score.shape != x.shape[:3] or x.shape[3] != 2:
            raise BadClip(f"keypoint_score of shape {score.shape} does not fit keypoint of shape {x.shape}")
        x = np.concatenate([x, score[..., None]], -1)
    if x.shape[2:] != usual:
        found = f"{x.shape[2]} joints x {x.shape[3]} channels"
        raise BadClip(f"has {found}, most clips of the file have {usual[0]} x {usual[1]}")
    if x.shape[3] not in (2, 3) or 0 in x.shape:
        raise BadClip(f"keypoint has the shape {x.shape}, expected persons, frames, joints and 2 or 3 channels")
    if clip.get("total_frames", x.shape[1]) != x.shape[1]:
        raise BadClip(f"total_frames is {shown(clip['total_frames'])}, keypoint has {x.shape[1]} frames")
    return x if x.dtype in (np.float16, np.float32) else x.astype(np.float32)


def _is_listed(label: Any) -> bool:
    return isinstance(label, list | tuple | set | frozenset) or (isinstance(label, Array) and label.ndim == 1)


def class_of(clip: Any, several: bool) -> int | list[int]:
    """A clip's class number, or in a multi-label file the list of them."""
    if not isinstance(clip, dict):
        raise BadClip(f"is a {type(clip).__name__}, expected a dict")
    label = clip.get("label")
    if several and _is_listed(label):
        labels = array_of(clip, "label", 1, "(classes,)").tolist() if isinstance(label, Array) else label
        return [_class(one) for one in labels]
    return [_class(label)] if several else _class(label)


def _class(label: Any) -> int:
    if isinstance(label, bool) or not isinstance(label, int):
        raise BadClip(f"label is {shown(label)}, expected one class number")
    if not 0 <= label < 1 << 20:
        raise BadClip(f"label is {shown(label)}, expected a class number from 0")
    return label


def image_shape(clip: dict) -> tuple[int, int]:
    """(height, width) of a clip's images in pixels, upstream's default where it does not say."""
    shape = clip.get("img_shape", DEFAULT_IMG_SHAPE)
    shape = tuple(array_of(clip, "img_shape", 1, "(2,)").tolist()) if isinstance(shape, Array) else shape
    height_width = shape[:2] if isinstance(shape, tuple | list) else ()
    if len(height_width) < 2 or not all(isinstance(size, int) and 0 < size < 1 << 31 for size in height_width):
        raise BadClip(f"img_shape is {shown(shape)}, expected (height, width) in pixels")
    return tuple(height_width)
