"""Annotation pickles of pyskl and MMAction2, gone through clip by clip; and indices such as k400_2d.pkl.

An index has no keypoints: every clip tells the frame of each of its skeletons, which lie in other pickles,
    frame_inds (S,), box_score (S,), valid {threshold: frames}, total_frames
    <skeletons>/<frame_dir>.pkl {"keypoint": (S, V, 3), ...}             MMAction2
    <skeletons>/<name of raw_file> {frame_dir: {"keypoint": ...}}        pyskl
and they become slots of persons as DecompressPose makes them: frames without people dropped, the i-th skeleton of a
frame in slot i; where a frame has more than `max_person`, the most confident ones of each frame first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import UserError
from ..annotations import Annotations, BadClip, array_of, class_of, image_shape, open_annotations, pose_of, text
from ..layouts import choose_layout
from ..store_writer import Record
from ..tree import Tree
from ..unpickle import Array, load_plain
from .job import MOST_FRAMES, UNLABELLED, Bad, Clip, Format, Job, Options, check_semantics

_MAX_PERSON = 10  # upstream's default


def _matches(tree: Tree) -> bool:
    # binary protocols, and what a list or dict starts with in older ones
    return tree.root.is_file() and tree.entries[0].head(1) in (b"\x80", b"(", b"]", b"}")


def _open(tree: Tree, options: Options) -> Job:
    check_semantics(options, "an annotation pickle", ("mmaction2", "pyskl", "original"))
    found = open_annotations(tree.root)
    without = [isinstance(clip, dict) and "keypoint" not in clip and "frame_inds" in clip for clip in found.clips]
    stamp = [(entry.name, entry.size, entry.stamp) for entry in tree.entries]
    if not found.usual and any(without):
        return _open_index(found, options, stamp)
    if not found.usual:
        raise UserError(f"{tree.root}: none of its {len(found.clips)} clips has a keypoint array (M, T, V, C)")
    layout, channels = found.skeleton(options.layout, options.channels)
    pieces = list(enumerate(found.clips))
    job = Pickled(pieces=pieces, layout=layout, channels=channels, found=found, stamp=[*stamp, options.max_person])
    job.max_person = options.max_person
    return job


def _open_index(found: Annotations, options: Options, stamp: list[Any]) -> Job:
    if options.skeletons is None:
        raise UserError(
            f"{found.path}: is an index of skeletons that lie in other files; give their folder with --skeletons DIR"
        )
    if not options.skeletons.is_dir():
        raise UserError(f"{options.skeletons}: no such folder; give the one that holds the pickles of skeletons")
    pieces, notes = list(enumerate(found.clips)), []
    thr, ratio = options.box_thr, options.valid_ratio
    if ratio is not None:
        thr = 0.5 if thr is None else thr
        pieces = [(i, clip) for i, clip in pieces if _valid_frames(found, clip, i, thr) >= ratio]
        notes.append(
            f"{len(found.clips) - len(pieces)} clips left out, whose frames with a box of at least {thr} are less than "
            f"{ratio:.0%}"
        )
    pieces.sort(key=lambda piece: text(piece[1].get("raw_file", "")) if isinstance(piece[1], dict) else "")
    layout = choose_layout(17, "xys", options.layout or "coco", str(found.path))
    stamp = [*stamp, str(options.skeletons), thr, ratio, options.max_person]
    return Index(
        pieces=pieces,
        layout=layout,
        channels="xys",
        notes=notes,
        found=found,
        stamp=stamp,
        skeletons=options.skeletons,
        box_thr=thr,
        max_person=options.max_person or _MAX_PERSON,
    )


def _valid_frames(found: Annotations, clip: Any, place: int, thr: float) -> float:
    """Part of the frames that have a box of at least this score."""
    valid = clip.get("valid") if isinstance(clip, dict) else None
    frames, total = (
        (valid.get(thr) if isinstance(valid, dict) else None),
        clip.get("total_frames") if isinstance(clip, dict) else 0,
    )
    if not isinstance(frames, int) or not isinstance(total, int) or total < 1:
        raise UserError(
            f"{found.path}: clip {found.name(clip, place)} does not say how many frames are valid at {thr}; leave "
            "--valid-ratio out, or choose a --box-thr of the file"
        )
    return frames / total


@dataclass(kw_only=True)
class Pickled(Job):
    found: Annotations
    stamp: list[Any]
    max_person: int | None = None

    def without(self) -> Job:
        return replace(self, pieces=(), found=replace(self.found, clips=[], split={}))

    def identity(self) -> list[Any]:
        return self.stamp

    def name(self, piece: Any) -> str:
        return self.found.name(piece[1], piece[0])

    def read(self, piece: Any) -> Iterator[Clip]:
        clip = piece[1]
        try:
            label = class_of(clip, self.found.several) if self.labelled else UNLABELLED
            pose, image = self._pose(clip), image_shape(clip)
        except BadClip as reason:
            raise Bad(str(reason)) from None
        yield Clip(self.name(piece), label, pose, image if self.found.imaged else None)

    def _pose(self, clip: Any) -> np.ndarray:
        pose = pose_of(clip, self.found.usual)
        return pose if self.max_person is None else pose[: self.max_person]

    def splits(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        return self.found.masks([record.name for record in records])[0]

    def remarks(self, splits: dict[str, np.ndarray], records: Sequence[Record]) -> list[str]:
        return self.found.masks([record.name for record in records])[1]


@dataclass(kw_only=True)
class Index(Pickled):
    skeletons: Path
    box_thr: float | None = None
    max_person: int = field(default=_MAX_PERSON)

    def _pose(self, clip: Any) -> np.ndarray:
        if not isinstance(clip, dict) or "frame_inds" not in clip:
            raise BadClip("has no frame_inds")
        frame = array_of(clip, "frame_inds", 1, "(S,)")
        keypoint = array_of(self._skeletons(clip), "keypoint", 3, "(S, V, 3)")
        if keypoint.shape[1:] != (self.layout.num_joints, 3) or len(keypoint) != len(frame):
            expected = f"({len(frame)}, {self.layout.num_joints}, 3)"
            raise BadClip(f"its skeletons have the shape {keypoint.shape}, expected {expected}")
        if self.box_thr is not None:
            score = array_of(clip, "box_score", 1, "(S,)") if "box_score" in clip else np.empty(0)
            if score.shape != frame.shape:
                raise BadClip(f"has {len(score)} values of box_score for {len(frame)} skeletons")
            frame, keypoint = frame[score >= self.box_thr], keypoint[score >= self.box_thr]
        if not len(frame):
            raise BadClip("nobody is in any of its frames")
        if frame.dtype.kind not in "iu" or (np.diff(frame.astype(np.int64)) < 0).any():
            raise BadClip("its frame_inds are not frame numbers in order")
        return decompress(frame, keypoint, self.max_person)

    def _skeletons(self, clip: dict) -> dict:
        name = text(clip.get(self.found.key))
        if isinstance(raw := clip.get("raw_file"), str):
            within = _contents(self.skeletons / PurePosixPath(raw.replace("\\", "/")).name)
            found = within.get(name) if isinstance(within, dict) else None
        else:
            path = self.skeletons / f"{name}.pkl"
            if path.parent != self.skeletons:
                raise BadClip("its id is no file name")
            found = _contents(path)
        if isinstance(found, Array):
            found = {"keypoint": found}
        if not isinstance(found, dict) or "keypoint" not in found:
            raise BadClip("there is no keypoint for it among the skeletons")
        return found


@lru_cache(maxsize=1)
def _contents(path: Path) -> Any:
    try:
        return load_plain(path, defer=True)
    except UserError as error:
        raise BadClip(str(error)) from None


def decompress(frame: np.ndarray, keypoint: np.ndarray, max_person: int) -> np.ndarray:
    """Skeletons (S, V, 3) and the frame of each, in order, as float16 (M, T, V, 3) without empty frames."""
    frame = np.unique(frame, return_inverse=True)[1].reshape(-1)
    slot = np.arange(len(frame)) - np.searchsorted(frame, frame)
    people, total = int(slot.max()) + 1, int(frame.max()) + 1
    if total > MOST_FRAMES or people > 1000:
        raise BadClip(f"has up to {people} persons in {total} frames")
    data = np.zeros((people, total, *keypoint.shape[1:]), np.float16)
    with np.errstate(over="ignore"):
        data[slot, frame] = keypoint
    if people > max_person:
        with np.errstate(over="ignore", invalid="ignore"):
            score = data[..., 2].sum(-1)  # float16, as upstream adds them
        present = np.arange(people)[:, None] < np.bincount(frame)
        order = np.argsort(np.where(present, -score.astype(np.float64), np.inf), axis=0, kind="stable")
        data = np.take_along_axis(data, order[..., None, None], 0)[:max_person]
    return data


FORMATS = (
    Format(
        "pickle",
        "annotation pickle of pyskl or MMAction2, or an index such as k400_2d.pkl with --skeletons",
        _matches,
        _open,
    ),
)
