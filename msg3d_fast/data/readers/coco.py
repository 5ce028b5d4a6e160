"""COCO keypoints: results, a list of persons, or annotations, a dict with images; one file per clip or for many.

    {"image_id": 12 | "name_12.jpg", "keypoints": [x0, y0, s0, x1, ...], "track_id" | "idx": 3, "video_id": 7}
    {"images": [{"id": 12, "file_name": "class/clip/000012.jpg", "height": h, "width": w, "video_id", "frame_id"}, ...],
     "annotations": [...], "videos": [{"id": 7, "name": "clip"}, ...]}

Clips are told apart by video_id (vid_id), else by the folders of the images' names, else a file is a clip. Persons keep
their track_id (idx, AlphaPose's) or are followed from frame to frame. What the third number is, visibility (0, 1, 2) in
annotations or a confidence in results, is kept as confidence, visible being 1.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ..layouts import choose_layout
from ..tracks import into_slots
from ..tree import Entry, Tree
from .job import MOST_FRAMES, UNLABELLED, Bad, Clip, Format, Job, Options, Skipped, check_semantics, left_out
from .labels import Labels, open_labels

_VIDEO, _TRACK = ("video_id", "vid_id"), ("track_id", "idx", "instance_id")


def _matches(tree: Tree) -> bool:
    found = tree.matching(r".*\.json")
    return bool(found) and any(b'"keypoints"' in e.head(1 << 16) or b'"image_id"' in e.head(1 << 16) for e in found[:1])


def _open(tree: Tree, options: Options) -> Job:
    check_semantics(options, "COCO json")
    entries, _ = left_out(tree.matching(r".*\.json"), options)
    joints = next((n for entry in entries[:20] if (n := _num_joints(entry))), 17)
    return Coco(
        pieces=entries,
        layout=choose_layout(joints, "xys", options.layout, str(tree.root)),
        channels="xys",
        labels=open_labels(options),
        max_person=options.max_person or 2,
        img_shape=options.img_shape,
    )


def _num_joints(entry: Entry) -> int:
    try:
        persons = _content(json.loads(entry.read()))[0]
        return len(persons[0]["keypoints"]) // 3
    except Exception:  # whatever damaged bytes lead to; reading the clip will say what
        return 0


def _content(content: Any) -> tuple[list[dict], dict[Any, dict], dict[Any, str], bool]:
    """Persons, images by id, names of videos by id, and whether they are annotations."""
    if isinstance(content, list):
        return content, {}, {}, False
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise Bad("holds no list of persons with keypoints")
    images = {image["id"]: image for image in content.get("images", [])}
    videos = {
        video["id"]: str(video.get("name", video.get("file_name", video["id"]))) for video in content.get("videos", [])
    }
    return content["annotations"], images, videos, True


def _first(about: dict, keys: tuple[str, ...]) -> Any:
    return next((about[key] for key in keys if key in about), None)


def _number(value: Any) -> int:
    """The place of a frame: a number, or the last digits of a name."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = re.findall(r"\d+", PurePosixPath(str(value)).stem)
    if not found:
        raise Bad(f"image {value!s:.40!r} has no number, so that its place among the frames is unknown")
    return int(found[-1])


@dataclass(kw_only=True)
class Coco(Job):
    labels: Labels = field(default_factory=Labels)
    max_person: int = 2
    img_shape: tuple[int, int] | None = None

    def read(self, piece: Entry) -> Iterator[Clip | Skipped]:
        persons, images, videos, annotated = _content(json.loads(piece.read()))
        whole = str(PurePosixPath(piece.name).with_suffix(""))
        clips: dict[str, dict[int, list[dict]]] = {}
        shapes: dict[str, tuple[int, int]] = {}
        for image in images.values():  # frames without anybody are frames
            name = self._clip(whole, image, {}, videos)
            clips.setdefault(name, {}).setdefault(self._frame(image, {}), [])
            if isinstance(image.get("height"), int) and isinstance(image.get("width"), int):
                shapes[name] = image["height"], image["width"]
        for person in persons:
            if not isinstance(person, dict) or "keypoints" not in person:
                continue
            image = images.get(person.get("image_id"), {})
            name = self._clip(whole, image, person, videos)
            clips.setdefault(name, {}).setdefault(self._frame(image, person), []).append(person)
        if not clips:
            raise Bad("holds nobody's keypoints")
        for name, frames in sorted(clips.items()):
            try:
                label, split = self.labels.of(name) if self.labelled else (UNLABELLED, None)
                yield Clip(name, label, self._pose(frames, annotated), shapes.get(name, self.img_shape), split)
            except Bad as reason:
                yield Skipped(name, str(reason))

    @staticmethod
    def _clip(whole: str, image: dict, person: dict, videos: dict[Any, str]) -> str:
        video = _first(person, _VIDEO) if _first(person, _VIDEO) is not None else _first(image, _VIDEO)
        if video is not None:
            return videos.get(video, str(video))
        folder = PurePosixPath(str(image.get("file_name", ""))).parent.as_posix()
        return whole if folder in ("", ".") else folder

    @staticmethod
    def _frame(image: dict, person: dict) -> int:
        frame = image.get("frame_id", person.get("frame_id"))
        return _number(frame if frame is not None else image.get("file_name", person.get("image_id", image.get("id"))))

    def _pose(self, frames: dict[int, list[dict]], annotated: bool) -> np.ndarray:
        if len(frames) > MOST_FRAMES:
            raise Bad(f"has {len(frames)} frames; cut it into clips")
        tracked = all(isinstance(_first(p, _TRACK), int) for persons in frames.values() for p in persons)
        poses, ids = [], []
        for number in sorted(frames):
            x = [np.array(person["keypoints"], np.float64) for person in frames[number]]
            if any(one.shape != (3 * self.layout.num_joints,) for one in x):
                wrong = next(one.size for one in x if one.shape != (3 * self.layout.num_joints,))
                raise Bad(f"frame {number} has keypoints of {wrong} numbers, expected {3 * self.layout.num_joints}")
            people = np.nan_to_num(np.array(x).reshape(len(x), self.layout.num_joints, 3), posinf=0, neginf=0)
            if annotated:
                people[..., 2] = np.minimum(people[..., 2], 1)
            people[people[..., 2] <= 0] = 0
            poses.append(people)
            ids.append([_first(person, _TRACK) for person in frames[number]])
        pose = into_slots(poses, self.max_person, ids if tracked else None)
        if not len(pose) or not pose.any():
            raise Bad("nobody is in any of its frames")
        return pose


FORMATS = (Format("coco", "COCO keypoint json: results or annotations, also AlphaPose's", _matches, _open),)
